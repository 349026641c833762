"""Ctrl-C and the signals by which a scheduler ends a program."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# SLURM's and torchrun's is SIGTERM; sbatch --signal sends what it is told.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS_TO_REPEAT = 2.0  # torchrun hands on a Ctrl-C that its processes get as well
SECONDS_TO_OUTLIVE = 600  # longer than a validation


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Notes these signals instead of obeying them, so that a program can come to where
    it loses nothing; another one, later than torchrun's, is a `KeyboardInterrupt`.

    Signals are the main thread's: in another one nothing is noted.

    Yields
    ------
    list of int
        The signals that have come.

    Example
    -------
    >>> with noted_signals() as noted:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> noted == [signal.SIGTERM]
    True
    """
    noted, first = [], None

    def note(number, frame):
        nonlocal first
        noted.append(number)
        if first is None:
            first = time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                # Not by print, which this may have interrupted.
                told = b"\nStopping at a checkpoint; another Ctrl-C stops at once.\n"
                with contextlib.suppress(OSError):  # tee has had the Ctrl-C too
                    os.write(sys.__stderr__.fileno(), told)
        elif time.monotonic() - first >= SECONDS_TO_REPEAT:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    # In the background of a script, Ctrl-C is for others.
    numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_signals(worker: int = 0) -> None:
    """Lets a data worker outlive these signals, which a terminal or a scheduler sends
    to all processes: the training needs it until its checkpoint is written, and ends it
    then. It outlives a SIGTERM by ten minutes, and none that comes later than
    torchrun's: that is the training's.

    Arguments
    ---------
    worker : int
        Its number, as of a `worker_init_fn`.
    """
    first = None

    def outlive(number, frame):
        nonlocal first
        if first is None:
            first = time.monotonic()
            signal.alarm(SECONDS_TO_OUTLIVE)
        elif time.monotonic() - first >= SECONDS_TO_REPEAT:
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, outlive)
