"""What an exercise is, and how a function is compared with the solution and with mistakes."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from learn.differences import same


def called(function: Callable, *inputs: object) -> object:
    """Call a function and return its result: the usual way of running a case."""
    return function(*inputs)


@dataclass(frozen=True)
class Case:
    """An input on which functions are compared.

    `run(function, *inputs())` returns what is compared: tensors, numbers, or tuples and dicts of
    these. The keys of a dict are shown to the student.
    """

    label: str  # describes the input to the student
    inputs: Callable[[], tuple]  # makes the input; called for each run
    run: Callable = called
    names: Sequence[str] | None = None  # of the inputs that are shown; the parameters' by default


@dataclass(frozen=True)
class Mistake:
    """A typical mistake: a wrong function, and what to say if the student's behaves alike."""

    name: str  # a few words: "alpha instead of alpha-bar"
    explanation: str  # two sentences: what is wrong, and what is right
    function: Callable


@dataclass(frozen=True)
class Task:
    """A function to write."""

    name: str
    hint: str
    cases: Sequence[Case]  # the smallest first
    mistakes: Sequence[Mistake]
    uses: Sequence[str] = ()  # functions of earlier exercises that it calls
    linear: Sequence[str] = ()  # inputs of which the (first) result is a weighted sum


@dataclass(frozen=True)
class Exercise:
    """A file with functions to write."""

    file: str  # without .py; begins with its number
    title: str
    chapter: str  # page of docs/guide
    tasks: Sequence[Task]
    done: str  # what the student has, once it is right
    # Numbers of the exercises that its training uses: once all are done, it trains and draws.
    trains_with: Sequence[int] = ()

    @property
    def number(self) -> int:
        return int(self.file[:2])


class Outcome(NamedTuple):
    """What a function did with the input of a case."""

    value: object = None
    error: BaseException | None = None
    changed: tuple[str, ...] = ()  # names of the inputs that it changed in place

    def equals(self, other: "Outcome") -> bool:
        """Is this the same behaviour? Errors are the same if type and message are."""
        if self.error is not None or other.error is not None:
            return type(self.error) is type(other.error) and str(self.error) == str(other.error)
        return self.changed == other.changed and same(self.value, other.value)


def outcome(function: Callable, case: Case) -> Outcome:
    """Run a function on the input of a case. Only Ctrl-C and a time limit are raised."""
    inputs = case.inputs()
    before = [snapshot(value) for value in inputs]
    # random() has other numbers, which a student might draw as well. torch.manual_seed is slow.
    torch.default_generator.manual_seed(1234)
    try:
        value = case.run(function, *inputs)
    except (Exception, SystemExit) as error:
        return Outcome(error=error)
    names = parameter_names(function, len(inputs))
    pairs = zip(names, before, map(snapshot, inputs), strict=True)
    return Outcome(value, changed=tuple(name for name, old, new in pairs if not same(old, new)))


def snapshot(value: object) -> object:
    """A copy of a tensor; None for all else, which is not checked for changes."""
    return value.detach().clone() if isinstance(value, Tensor) else None


def parameter_names(function: Callable, count: int) -> list[str]:
    """The names of a function's parameters; numbers where it does not tell them."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *(f"input {i + 1}" for i in range(len(names), count))][:count]


def outcomes(function: Callable, task: Task) -> Iterator[Outcome]:
    """The outcomes of all cases of a task, computed as they are needed."""
    return (outcome(function, case) for case in task.cases)


def matches(found: Sequence[Outcome], function: Callable, task: Task) -> bool:
    """Does a function behave as found, in all cases?"""
    return all(a.equals(b) for a, b in zip(found, outcomes(function, task), strict=True))


def diagnose(found: Sequence[Outcome], task: Task) -> Mistake | None:
    """The mistake that behaves as a student's function does, or None."""
    return next((m for m in task.mistakes if matches(found, m.function, task)), None)


# --- helpers of the catalogue ---------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that are the same in each run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(value: float, step: float) -> float:
    """A number rounded to a multiple of `step`: what chance changes little."""
    return step * round(float(value) / step) + 0.0


def tables(timesteps: int = 10) -> tuple[Tensor, Tensor]:
    """betas and alphas_cumprod (T,) for the inputs of cases: large steps, so that errors show."""
    betas = torch.linspace(0.02, 0.4, timesteps)
    return betas, torch.cumprod(1 - betas, dim=0)


class Model(nn.Module):
    """A network for the inputs of cases: its output is w x_t + b t, and it records its inputs."""

    def __init__(self, w: float = 0.5, b: float = 0.1):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append((x_t, t))
        return self.w * x_t + self.b * torch.as_tensor(t).view(-1, *[1] * (x_t.ndim - 1))


def facts_of_times(calls: Sequence[tuple[Tensor, Tensor]]) -> Mapping[str, object]:
    """Facts about the t of calls, which hold for any number of them, and for joined batches."""
    times = [torch.as_tensor(t) for _, t in calls]
    alike = (t.shape == x_t.shape[:1] for (x_t, _), t in zip(calls, times, strict=True))
    return {
        "the model's t is (B,), one for each image": all(alike),
        "dtype of the model's t": ", ".join(sorted({str(t.dtype) for t in times})),
    }


def loss_and_gradient(function: Callable, model: Model, *inputs: object) -> Mapping[str, object]:
    """Run a loss function; compare its value, the gradient of the model's weights, and the t that
    the model was called with."""
    value = function(model, *inputs)
    facts: dict[str, object] = {"loss": value, **facts_of_times(model.calls)}
    if isinstance(value, Tensor) and value.numel() == 1:
        facts["has a gradient"] = value.requires_grad
        if value.requires_grad:
            grads = torch.autograd.grad(value.sum(), [model.w, model.b], allow_unused=True)
            for name, grad in zip(("first", "second"), grads, strict=True):
                grad = torch.zeros(()) if grad is None else grad
                facts[f"gradient of the model's {name} weight"] = grad
    return facts
