"""Writing checkpoints while the training goes on."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

from torch import Tensor

from training.sharding import unsharded


def on_host(state):
    """A copy, on the CPU, of nested dicts and lists with tensors in them, sharded ones in whole."""
    if isinstance(state, Tensor):
        return unsharded(state.detach()).to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_host(value) for value in state)
    return state


class Saver:
    """Does one job at a time in a thread of its own.

    A job that fails with an OSError (a full disk, say) is reported and forgotten; what it should
    have replaced is as it was. The thread ends what it has begun before the process ends.
    """

    def __init__(self, report: Callable[[OSError], None]):
        self._report = report
        self._job: Future | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, once the one before has ended."""
        self.wait()
        self._job = begin(job)

    def run(self, job: Callable[[], None]) -> None:
        """Do a job, and raise what it raises."""
        self.wait()
        begin(job).result()

    def busy(self) -> bool:
        """Is a job under way? Reports the one before, if it has failed."""
        if self._job is not None and not self._job.done():
            return True
        self.wait()
        return False

    def wait(self) -> None:
        """Wait for the job to end. Raises what it raised, but for an OSError."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            job.result()
        except OSError as error:
            self._report(error)


def begin(job: Callable[[], None]) -> Future:
    """Do a job in a thread of its own; what it raises is in the future.

    Not in a pool, whose thread waits for more: for ever, after a Ctrl-C while it starts.
    """
    future = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="saver").start()
    return future
