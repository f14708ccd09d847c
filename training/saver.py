"""Writing checkpoints while training continues."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

from torch import Tensor

from training.sharding import unsharded


def on_host(state):
    """Copy nested dicts and lists of tensors to the CPU; sharded tensors are gathered."""
    if isinstance(state, Tensor):
        return unsharded(state.detach()).to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_host(value) for value in state)
    return state


class Saver:
    """Runs one job at a time in a background thread.

    A job that fails with an OSError (a full disk, say) is reported, and training continues. The
    process ends only after the job has ended.
    """

    def __init__(self, report: Callable[[OSError], None]):
        self._report = report
        self._job: Future | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job once the previous one has ended."""
        self.wait()
        self._job = begin(job)

    def run(self, job: Callable[[], None]) -> None:
        """Run a job and wait for it. Raises what the job raises."""
        self.wait()
        begin(job).result()

    def busy(self) -> bool:
        """Is a job running? Reports the previous one if it failed."""
        if self._job is not None and not self._job.done():
            return True
        self.wait()
        return False

    def wait(self) -> None:
        """Wait for the job to end. Raises what the job raised, except for an OSError."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            job.result()
        except OSError as error:
            self._report(error)


def begin(job: Callable[[], None]) -> Future:
    """Start a job in a thread of its own. Its exception is in the future.

    A thread pool is not used: a Ctrl-C while its thread starts would leave it waiting for ever.
    """
    future = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="saver").start()
    return future
