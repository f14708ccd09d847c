"""The length of a run, and what depends on its progress."""

import math
import time
from collections.abc import Callable

LR_DECAYS: dict[str, Callable[[float], float]] = {  # progress 0 ... 1 -> fraction of the full rate
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "none": lambda progress: 1.0,
}


def learning_rate(step: int, total: int | None, train: dict) -> float:
    """The learning rate at a step (from 0): a linear warm-up to `lr`, then a decay to 0 at `total`.

    `train` has lr, warmup_steps, lr_decay, and decay_from if the plan was corrected. There is no
    decay while `total` is unknown.
    """
    lr, warmup = train["lr"], train["warmup_steps"]
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * LR_DECAYS[train["lr_decay"]](decay_progress(step, total, train))


def decay_progress(step: int, total: int | None, train: dict) -> float:
    """The progress of the decay, 0 ... 1, at a step after the warm-up.

    It grows linearly to 1 at `total`, from `decay_from`: the step and the progress at which the
    number of steps was last corrected. A correction changes how fast progress grows from there on,
    so progress neither jumps nor falls.
    """
    if total is None:
        return 0.0
    first, before = train.get("decay_from") or (train["warmup_steps"], 0.0)
    return min(1.0, before + (1 - before) * ((step - first) / max(1, total - first)))


FIRST_SNAPSHOT = 16  # step; before it, samples are noise


def is_snapshot_step(step: int) -> bool:
    """Is a snapshot due after this step? At 16, 23, 32, 45, 64, ...: powers of sqrt(2)."""
    return step >= FIRST_SNAPSHOT and step == round(2 ** (round(2 * math.log2(step)) / 2))


EARLIER_EPOCHS = 20  # of a run without a limit, in earlier versions, which did not save it


def step_limit(train: dict, epoch_steps: int) -> int | None:
    """The steps that --epochs and --max-steps allow; None if only time limits the run."""
    epochs = train["epochs"]
    if not (train["epochs"] or train["max_steps"] or train["max_minutes"]):
        epochs = EARLIER_EPOCHS
    limits = [train["max_steps"], epochs and epochs * epoch_steps]
    return min((limit for limit in limits if limit), default=None)


class RunLength:
    """The number of steps of a run: known from the start, or once a time plan has measured speed.

    Args:
        train: the configuration of the training. Its `total_steps` is the length of a resumed run,
            or None. The plan is written to it: `total_steps` and `decay_from`.
        epoch_steps: steps of an epoch.
        first_step: the step that the run starts or resumes from.
        start: a reading of `time.monotonic()` from which --max-minutes counts.
        last_lr: the learning rate that a resumed run ended with.
    """

    def __init__(
        self,
        train: dict,
        epoch_steps: int,
        first_step: int,
        start: float,
        last_lr: float = math.inf,
    ):
        self.train, self.last_lr = train, last_lr
        self.total, self.plan = None, None
        self.limit = step_limit(train, epoch_steps)
        if train["total_steps"] is not None:
            self.fix(train["total_steps"])
        elif train["max_minutes"]:
            grid_steps = epoch_steps * (train["sample_interval"] or 10**9)
            self.plan = TimePlan(train["max_minutes"], start, first_step, grid_steps)
            self.plan.evaluation_steps = epoch_steps * (train["eval_interval"] or math.inf)
        else:
            self.fix(self.limit)

    @property
    def end(self) -> int | None:
        """The last step of the run, or its limit while the plan has not measured."""
        return self.total or self.limit

    def fix(self, total: int) -> None:
        """Set the number of steps, within the limit."""
        self.total = min(total, self.limit or total)
        self.train["total_steps"] = self.total

    def correct(self, total: int, step: int) -> None:
        """Change the number of steps after `step`. The decay continues from its progress there."""
        before = self.total
        self.fix(total)
        if before not in (None, self.total) and step > self.train["warmup_steps"]:
            self.train["decay_from"] = [step, decay_progress(step, before, self.train)]

    def proposed(self, step: int) -> int:
        """The number of steps as seen after `step`; 0 while it is unknown."""
        planned = self.plan.update(step, self.total) if self.plan else None
        return planned or (self.limit if step == self.limit else 0)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; while the length is unknown it does not rise on resume."""
        lr = learning_rate(step, self.total, self.train)
        return min(lr, self.last_lr) if self.total is None else lr


class TimePlan:
    """Fits the number of steps to a time budget.

    It measures the speed of the first steps and sets the number of steps, so that the learning-rate
    decay ends with the budget. It corrects the number a few times later, because the speed changes.

    Args:
        minutes: the budget, counted from `start`.
        start: a reading of `time.monotonic()`.
        first_step: the step that the run starts or resumes from.
        grid_steps: steps between two sample grids; the time of the grids is part of the budget.
    """

    SETTLE = 5  # first steps, slower than the rest, that are not measured
    MEASURE = 20  # steps that are measured
    CORRECT = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)  # fractions of the run after which it corrects

    def __init__(self, minutes: float, start: float, first_step: int, grid_steps: int):
        self.deadline = start + 60 * minutes
        self.start, self.tenth = start, 6 * minutes  # seconds of a tenth of the budget
        self.first_step = first_step
        self.grid_steps = grid_steps
        self.grid_seconds = 0.0  # of one grid, and of the run's end; set before the first `update`
        self.evaluation_steps = math.inf  # between two evaluations, and the seconds of one
        self.evaluation_seconds = 0.0
        self._mark: tuple[int, float] | None = None  # step and time since when speed is measured
        self._settled = False
        self._paused = 0.0  # seconds since the mark that were not spent on steps

    def pause(self, seconds: float) -> None:
        """Do not count time that was not spent on steps, but on a grid or a file."""
        self._paused += seconds

    @property
    def end_seconds(self) -> float:
        """The time of the last grid and evaluation."""
        return self.grid_seconds + self.evaluation_seconds

    def update(self, step: int, total: int | None) -> int | None:
        """The number of steps of the whole run, as estimated after `step`; None while unknown.

        Not every step needs to be reported.
        """
        done, now = step - self.first_step, time.monotonic()
        if self._mark is None or (done >= self.SETTLE and not self._settled):
            self._settled = done >= self.SETTLE
            self._mark, self._paused = (step, now), 0.0
            return total
        since, mark = self._mark
        if total is None:
            due = step - since >= self.MEASURE
            due |= now > self.start + self.tenth  # slow steps, however few
        else:
            length = total - self.first_step
            before = since - self.first_step
            due = any(before < int(length * fraction) <= done for fraction in self.CORRECT)
            due &= step - since >= self.MEASURE
            # Very slow steps may reach none of these fractions before the time is up.
            due |= now > min(mark + self.tenth, self.deadline - self.end_seconds)
        if not due or step == since:
            return total
        per_step = (now - mark - self._paused) / (step - since)
        per_step += self.grid_seconds / self.grid_steps
        per_step += self.evaluation_seconds / self.evaluation_steps
        self._mark, self._paused = (step, now), 0.0
        return step + max(0, int((self.deadline - self.end_seconds - now) / per_step))
