"""Ctrl-C: before anything has begun it ends the program, then it interrupts the command, once. Imports next to nothing.

Libraries are loaded for seconds, and an exception in the middle of one that is being loaded prints whatever that
library makes of it. Who presses the key a second time has not waited for the checkpoints, which take a step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C ended
SHOW_CURSOR = b"\x1b[?25h"  # which a progress line hides


def _end(number: int, frame: Any) -> None:
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + b"stopped\n")
    os._exit(INTERRUPTED)


def _interrupt_once(number: int, frame: Any) -> None:
    signal.signal(number, _pass)
    raise KeyboardInterrupt


def _pass(number: int, frame: Any) -> None:
    """It is stopping already."""


def _is_ours(handler: Any) -> bool:
    """Whether it may be replaced: in the background of a shell, Ctrl-C is ignored, and stays so."""
    return handler in (signal.default_int_handler, _end, _interrupt_once)


def _set(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and _is_ours(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, handler)


def end_at_once() -> None:
    """From here on, Ctrl-C ends the program: there is nothing that could be lost."""
    _set(_end)


def interrupt_once() -> None:
    """From here on, the first Ctrl-C raises KeyboardInterrupt, and the next ones do nothing."""
    _set(_interrupt_once)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """In here, Ctrl-C ends a program that it would interrupt; a program that left Ctrl-C as it was keeps it so."""
    if signal.getsignal(signal.SIGINT) is _interrupt_once:
        _set(_end)
        try:
            yield
        finally:
            _set(_interrupt_once)
    else:
        yield


def leave() -> None:
    """The command is done, and Python takes itself apart: nothing is left to be stopped."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
