"""Ctrl-C, SIGTERM and SIGHUP as requests to stop at the end of a training step."""

import signal
from collections.abc import Callable

from distributed import launched

# SIGHUP: the terminal was closed. Windows does not have it.
REQUESTS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def handle_requests(handler: Callable) -> dict[int, object]:
    """Install a handler for the signals that request a stop. Returns the previous handlers.

    A signal that is ignored, as nohup does with SIGHUP, stays ignored. Outside the main thread,
    where Python allows no handlers, nothing is installed.
    """
    before = {n: signal.getsignal(n) for n in REQUESTS}
    before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
    except ValueError:
        return {}
    return before


class StopSignals:
    """While open, `received` is the number of the signal that requested the stop, or None.

    A second Ctrl-C or SIGTERM ends the process at once, except under torchrun, which forwards a
    Ctrl-C that its processes have received already. SIGHUPs are not counted: a closed terminal may
    send several, and a logout may send SIGTERM after them.
    """

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._before = handle_requests(self._handle)
        return self

    def _handle(self, number: int, frame) -> None:
        self.received = self.received or number
        if number in (signal.SIGINT, signal.SIGTERM) and not launched():
            self._restore(signal.SIGINT, signal.SIGTERM)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before[number])

    def __exit__(self, *error) -> None:
        self._restore(*self._before)
