"""The batch schedule: how many rows of how many tokens each step reads, and where in the data that is."""

import bisect
import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps of one batch shape.

    Attributes:
      first: its first step.
      batch_size: B, rows per step.
      sequence_length: T, tokens per row.
      tokens: trained on before its first step, padding counted.
      position: tokens of the run's sequence of rows that lie before its first step's.
    """

    first: int
    batch_size: int
    sequence_length: int
    tokens: int
    position: int


class Stages:
    """A run's batch shapes by step, as a pure function of the schedule.

    Data is planned once, in rows of `row_length` tokens, and all stages read on through the same rows: a
    shorter stage reads each in pieces of its own length, one after the other. So no data is read twice in an
    epoch. Where a stage begins in the middle of one of its pieces, it goes on with the next: at most
    `sequence_length - 1` tokens per change of length are passed over.
    """

    def __init__(self, stages: Sequence[tuple[int, int, int]], row_length: int):
        """Lay out `(first step, batch_size, sequence_length)`s, the first at step 0; each length divides `row_length`."""
        self.row_length = row_length
        self._stages: list[Stage] = []
        tokens = position = 0
        for first, batch_size, length in stages:
            if self._stages:
                before = self._stages[-1]
                read = (first - before.first) * before.batch_size * before.sequence_length
                tokens, position = before.tokens + read, before.position + read
            self._stages.append(Stage(first, batch_size, length, tokens, -(-position // length) * length))

    def __iter__(self):
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def at(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        return self._stages[bisect.bisect_right(self._stages, step, key=lambda stage: stage.first) - 1]

    def tokens(self, step: int) -> int:
        """Return the tokens trained on before a step, padding counted."""
        stage = self.at(step)
        return stage.tokens + (step - stage.first) * stage.batch_size * stage.sequence_length

    def tokens_by_length(self, step: int) -> dict[int, int]:
        """Return what `tokens` returns, by sequence length: work per token differs between them."""
        ends = [*(stage.first for stage in self._stages[1:]), step]
        out: dict[int, int] = {}
        for stage, end in zip(self._stages, ends, strict=True):
            tokens = max(min(end, step) - stage.first, 0) * stage.batch_size * stage.sequence_length
            out[stage.sequence_length] = out.get(stage.sequence_length, 0) + tokens
        return out

    def position(self, step: int) -> int:
        """Return where a step's batch begins in the run's sequence of rows, in tokens."""
        stage = self.at(step)
        return stage.position + (step - stage.first) * stage.batch_size * stage.sequence_length
