"""Stopping a run from outside: once asked, it ends after the present update, with a checkpoint.

Ctrl-C asks; a second one ends at once, and what was learnt since the last checkpoint is lost. SIGTERM asks too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Stop = Callable[[], int | None]
"""Returns the number of the signal that asked the run to end, or None while it may go on."""

EXIT_OF_SIGNAL = 128
"""A process that a signal ended has this and the signal's number as its exit status, as shells count."""


def never() -> int | None:
    """Go on for ever."""
    return None


@contextmanager
def stopping(
    *, say: Callable[[str], None] = lambda text: None, on_stop: Callable[[], object] = never
) -> Iterator[Stop]:
    """Note SIGINT and SIGTERM inside the scope instead of dying of them.

    Worker processes that are forked inside leave both, which a terminal or a scheduler sends to all processes of a job,
    to the process that waits for them, and which kills them when it is time; once it is gone they end on SIGTERM.
    Outside of the main thread, where Python lets nobody handle signals, nothing is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    caught: list[int] = []
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM and os.getppid() != owner:
                os._exit(EXIT_OF_SIGNAL + number)
            return
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not caught:
            on_stop()
            say("stopping after this update; Ctrl-C once more ends at once")
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
