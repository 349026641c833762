"""Ctrl-C and the signals by which a scheduler ends a program."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# SLURM and torchrun send SIGTERM, and a terminal that is closed or loses its connection
# SIGHUP; sbatch --signal sends any, such as SIGUSR1. Windows lacks the last two.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
SECONDS_TO_REPEAT = 2.0  # torchrun forwards a Ctrl-C that its processes also get
SECONDS_TO_OUTLIVE = 600  # longer than a validation


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Notes these signals instead of obeying them, so that a program can stop where it
    loses nothing. A second one raises `KeyboardInterrupt`, unless it comes so soon
    that torchrun may have forwarded it.

    Only the main thread receives signals: in others, nothing is noted.

    Yields
    ------
    list of int
        The signals received so far.

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
                # Not print, which the signal may have interrupted.
                told = b"\nStopping at a checkpoint; another Ctrl-C stops at once.\n"
                with contextlib.suppress(OSError):  # Ctrl-C may have ended tee
                    os.write(sys.__stderr__.fileno(), told)
        elif time.monotonic() - first >= SECONDS_TO_REPEAT:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    # A program in the background of a script ignores Ctrl-C, and goes on ignoring it;
    # so does one under nohup with SIGHUP.
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
    then. It outlives a first SIGTERM by ten minutes; a later one, unless torchrun may
    have forwarded it, comes from the training and ends it.

    Arguments
    ---------
    worker : int
        Its number, as passed to a `worker_init_fn`.
    """
    first = None

    def outlive(number, frame):
        nonlocal first
        if first is None:
            first = time.monotonic()
            signal.alarm(SECONDS_TO_OUTLIVE)
        elif time.monotonic() - first >= SECONDS_TO_REPEAT:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, outlive)
