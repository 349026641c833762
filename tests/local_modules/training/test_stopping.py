"""Signals that end a program: noted, and obeyed where they are repeated."""

import os
import pty
import signal
import threading
import time

import pytest

from local_modules.training import stopping
from local_modules.training.stopping import noted_signals, outlive_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("sign", SIGNALS)
def test_the_first_is_noted_and_told_once(sign, capfd):
    """torchrun hands on what its processes have got as well."""
    before = [signal.getsignal(sign) for sign in SIGNALS]
    with noted_signals() as noted:
        signal.raise_signal(sign)
        signal.raise_signal(signal.SIGTERM)
    assert noted == [sign, signal.SIGTERM]
    assert capfd.readouterr().err.count("Stopping at a checkpoint") == 1
    assert [signal.getsignal(sign) for sign in SIGNALS] == before


def test_a_later_one_stops_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_TO_REPEAT", 0.0)
    reached = []
    with pytest.raises(KeyboardInterrupt), noted_signals():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)
    assert reached == [1]


def test_one_rank_speaks(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    with noted_signals() as noted:
        signal.raise_signal(signal.SIGTERM)
    assert noted and not capfd.readouterr().err


def test_in_another_thread_all_is_as_before():
    found = []

    def look():
        with noted_signals() as noted:
            found.append((noted, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [([], signal.getsignal(signal.SIGTERM))]


@pytest.mark.parametrize("later", [False, True])
def test_a_data_worker_outlives_the_first_for_a_while(later, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_TO_OUTLIVE", 1)
    monkeypatch.setattr(stopping, "SECONDS_TO_REPEAT", 0.0 if later else 60.0)
    child = os.fork()
    if not child:
        try:
            outlive_signals()
            for sign in SIGNALS * 2:
                signal.raise_signal(sign)
            time.sleep(60)
        finally:
            os._exit(1)
    begin = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if later else -signal.SIGALRM)
    assert (time.monotonic() - begin > 0.9) != later


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_so(sign):
    """As Ctrl-C is in the background of a script, and a closed terminal by nohup."""
    before = signal.signal(sign, signal.SIG_IGN)
    try:
        with noted_signals() as noted:
            signal.raise_signal(sign)
        assert not noted
    finally:
        signal.signal(sign, before)


def test_a_closed_terminal_is_noted():
    """There is nothing left then to write to."""
    child, terminal = pty.fork()
    if not child:
        try:
            # Ignored if the tests run under nohup.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            with noted_signals() as noted:
                os.write(1, b"ready")
                until = time.monotonic() + 60
                while not noted and time.monotonic() < until:
                    time.sleep(0.01)
            os._exit(noted[0] if noted else 98)
        finally:
            os._exit(99)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == signal.SIGHUP
