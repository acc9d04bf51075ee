"""What a job costs by the hour, from a dated table that the user can edit."""

import dataclasses
import importlib.resources
import os
import pathlib
import tomllib
from collections.abc import Mapping

from lm.errors import UsageError
from lm.launch.job import Job

VARIABLE = "LM_PRICES"  # names a table of one's own


@dataclasses.dataclass(frozen=True)
class Cost:
    """Dollars an hour for all of a job's devices."""

    devices: int
    per_device: float
    as_of: str
    spot: bool

    @property
    def per_hour(self) -> float:
        return self.devices * self.per_device

    def __str__(self) -> str:
        kind = "spot, about" if self.spot else "on demand,"
        return (
            f"{kind} ${self.per_hour:,.2f} an hour ({self.devices} x ${self.per_device:.2f}; prices of {self.as_of}, "
            f"see ${VARIABLE})"
        )


def cost(job: Job, environment: Mapping[str, str] = os.environ) -> Cost | None:
    """Return what a job costs by the hour; None: its hardware is not in the table, or is one's own.

    Raises:
      UsageError: the table is not one.
    """
    if job.target in ("local", "slurm"):
        return None
    own = environment.get(VARIABLE)
    try:
        path = pathlib.Path(own) if own else importlib.resources.files("lm.launch").joinpath("prices.toml")
        table = tomllib.loads(path.read_text())
        price = table["on_demand"].get(job.accelerator.family)
        share = float(table["spot_share"]) if job.spot else 1.0
        return None if price is None else Cost(job.accelerator.devices, price * share, str(table["as_of"]), job.spot)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{VARIABLE}={own}: not a table of prices ({error}); start from lm/launch/prices.toml."
        ) from error
