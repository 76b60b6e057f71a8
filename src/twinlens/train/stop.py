"""Ctrl-C and SIGTERM as requests: the step in progress is finished before a run ends.

What is done about a request is loop.py's.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# torchrun passes on to its processes a Ctrl-C that the terminal has sent them already.
SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Whether somebody has asked the run to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM is a request; the second does what it always did.

    Elsewhere than in the main thread Python has no say in signals: nothing changes there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    asked_at = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if request.signal is None:
            request.signal, asked_at = number, time.monotonic()
        elif not together or time.monotonic() - asked_at > SAME_REQUEST_SECONDS:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            # None: not installed by Python, which cannot install it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
