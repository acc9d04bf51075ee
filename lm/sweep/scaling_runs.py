"""What a sweep's folder says about scaling: each run's parameters, training tokens and loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.config import Config, DataConfig
from lm.errors import ConfigError, DamagedFileError, UsageError
from lm.fields import build
from lm.storage import join
from lm.sweep.results import read_sweep
from lm.sweep.scaling import Run

METRICS = ("loss", "bits_per_byte")
PARAMETERS = ("non_embedding", "total", "active")  # as `lm.model.flops.parameter_counts` counts them


@dataclasses.dataclass(frozen=True)
class SweepRuns:
    """Finished runs by variant, and what they have in common."""

    by_variant: Mapping[str, Sequence[Run]]  # a run per seed; in the sweep's order
    planned: int  # runs of the sweep
    tokenizer: tuple  # as `tokenizer_of`

    def tuned(self, without: Sequence[str] = ()) -> list[Run]:
        """Return the runs to fit: of variants with the same N and D the one with the lowest mean loss.

        Variants that differ in more than size (learning rates, say) so become a tuned run for each size.

        Args:
          without: variants to leave out.

        Raises:
          UsageError: one of these is none of the sweep's finished variants.
        """
        for name in without:
            if name not in self.by_variant:
                raise UsageError(
                    f'"{name}" is not a finished variant. Finished: {", ".join(self.by_variant) or "none"}.'
                )
        best: dict[tuple, Sequence[Run]] = {}
        for name, runs in self.by_variant.items():
            place = runs[0].parameters, runs[0].tokens
            if name not in without and (place not in best or _mean_loss(runs) < _mean_loss(best[place])):
                best[place] = runs
        return [run for runs in best.values() for run in runs]


def _mean_loss(runs: Sequence[Run]) -> float:
    return sum(run.loss for run in runs) / len(runs)


def tokenizer_of(data: DataConfig) -> tuple:
    """Return what a loss per token depends on beside the model."""
    trained = (data.tokenizer_vocab_size, data.tokenizer_pattern) if data.tokenizer == "train" else ()
    return data.tokenizer, *trained


def read_runs(folder: str, *, parameters: str, metric: str) -> SweepRuns:
    """Read a sweep's finished runs: the validation at the last step, where the schedule ends.

    Args:
      folder: of the sweep, with `sweep.json` and `results/`.
      parameters: how N is counted, one of `PARAMETERS`.
      metric: one of `METRICS`.

    Raises:
      UsageError: the folder holds no sweep, or runs with different tokenizers are compared by their loss per token.
      DamagedFileError: a file is not what a sweep writes.
    """
    sweep = read_sweep(folder)
    by_variant: dict[str, list[Run]] = {}
    tokenizers = set()
    for variant in sweep.variants:
        for run in (run for run in sweep.runs_of(variant.name) if run.status == "done"):
            try:
                config = build(Config, run.result["config"], "")
                loss, tokens = float(run.result["final"][metric]), int(run.result["tokens"])
                size = _count(config, run.result, parameters)
            except (ConfigError, KeyError, TypeError) as error:
                raise DamagedFileError(f'"{join(folder, "results", run.id)}.json" is damaged: {error}.') from error
            tokenizers.add(tokenizer_of(config.data))
            by_variant.setdefault(variant.name, []).append(Run(size, tokens, loss))
    if len(tokenizers) > 1 and metric == "loss":
        raise UsageError(
            f'the runs in "{folder}" have {len(tokenizers)} different tokenizers, so their losses per token do not '
            "compare. Give --metric bits_per_byte."
        )
    return SweepRuns(by_variant, len(sweep.runs), min(tokenizers, default=()))


def _count(config: Config, result: Mapping[str, Any], parameters: str) -> int:
    if parameters == "total":
        return result["num_parameters"]
    from lm.model.flops import parameter_counts

    return parameter_counts(config.model)[parameters]
