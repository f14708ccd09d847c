"""Ctrl-C and SIGTERM as a wish to stop, that the training loop grants at the end of a step."""

import signal

from distributed import launched


class StopSignals:
    """While open, `received` is the number of the signal that asked to stop, or None.

    A second signal acts as if nobody caught it, for whoever does not want to wait; but not under
    torchrun, which passes on a Ctrl-C that has reached its processes already.
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
