"""How long a job is going to take, estimated from how long its first roll-outs took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..calibrate.frame_weights import LEAST_PROMPTS
from .work import Work

MINUTES = 30.0
"""What a job may take where nobody says."""
SPENT = "spent"
"""Name of the note that holds what was spent."""
PROMPTS = "prompts"
"""Name of the note that holds how many prompts are taken."""


@dataclass(frozen=True)
class RemainingWork:
    """What a job does after its roll-outs, in units of recording one batch of clips; `a + b` does both."""

    per_batch: float = 0.0
    """For every batch."""
    fixed: float = 0.0
    """However many there are."""

    def __add__(self, other: RemainingWork) -> RemainingWork:
        return RemainingWork(self.per_batch + other.per_batch, self.fixed + other.fixed)


NO_REST = RemainingWork()
FITTING = RemainingWork(per_batch=1.0, fixed=21.0)
"""Walking two states of half of the calls through the blocks; sums and rounding (benchmarks/cost.py). States that the
card cannot hold take longer."""
CHOOSING = RemainingWork(per_batch=1.0, fixed=7.0)
"""Replaying all calls; 56 of them with gradients, for a bit budget."""


class Clock:
    """How long roll-outs have taken, those before an interruption included, and what that says of the whole job."""

    def __init__(self, work: Work | None) -> None:
        self.work = work
        stored = None if work is None else work.note(SPENT)
        self.earlier, self.chunks_earlier = stored or (0.0, 0)
        self.began, self.generated = time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """So far."""
        return self.earlier + time.monotonic() - self.began

    @property
    def chunks(self) -> int:
        """Generated so far, a batch at a time."""
        return self.chunks_earlier + self.generated

    def store(self) -> None:
        """Keep what was spent, for a run that takes this one up."""
        if self.work is not None:
            self.work.update(SPENT, (self.seconds, self.chunks))

    def projected_minutes(self, upcoming: int, batches: int, clip: int, rest: RemainingWork) -> float:
        """Minutes of the whole job if `upcoming` more chunks are generated for `batches` in all; 0 if none were.

        `clip` chunks make a clip.
        """
        if not self.chunks:
            return 0.0
        whole = self.chunks + upcoming + clip * (rest.per_batch * batches + rest.fixed)
        return self.seconds / self.chunks * whole / 60


class PromptBudget:
    """Decides after how many prompts rolling out ends; a run that goes on after an interruption keeps the decision."""

    def __init__(
        self,
        clock: Clock,
        minutes: float | None,
        rest: RemainingWork,
        clip: int,
        batch: int,
        later: int,
    ) -> None:
        """The whole job, `rest` included, may take `minutes` (None: any time).

        A clip has `clip` chunks, a batch `batch` prompts, and `later` chunks are generated after all roll-outs.
        """
        self.clock, self.work, self.minutes, self.rest = clock, clock.work, minutes, rest
        self.clip, self.batch, self.later = clip, batch, later
        self.stop = None if self.work is None else self.work.note(PROMPTS)

    def enough(self, prompts: int, upcoming: int) -> bool:
        """Whether to end before the next batch, which would join `prompts` and takes `upcoming` chunks."""
        finished = self.work is not None and self.work.has_batch(prompts)
        if self.stop is None and not finished and self.too_long(prompts, upcoming):
            self.stop = max(prompts, LEAST_PROMPTS)
            if self.work is not None:
                self.work.note(PROMPTS, self.stop)
        return self.stop is not None and prompts >= self.stop

    def too_long(self, prompts: int, upcoming: int) -> bool:
        """Whether the whole job would take too long with the next batch."""
        if self.minutes is None:
            return False
        batches = prompts // self.batch + 1
        return self.clock.projected_minutes(upcoming + self.later, batches, self.clip, self.rest) > self.minutes
