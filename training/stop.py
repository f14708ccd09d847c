"""Ctrl-C and SIGTERM as requests to stop at the end of a training step."""

import signal

from distributed import launched


class StopSignals:
    """While open, `received` is the number of the signal that requested the stop, or None.

    A second signal ends the process at once, except under torchrun, which forwards a Ctrl-C that
    its processes have received already.
    """

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame) -> None:
        self.received = number
        if not launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error) -> None:
        self._restore()
