"""What a run remembers, through SpeechBrain's own checkpointer."""

from types import SimpleNamespace

import pytest
from speechbrain.utils.checkpoints import Checkpointer

from local_modules.training import history as module
from local_modules.training.history import RunHistory


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def restarted(folder):
    history = RunHistory()
    Checkpointer(folder, {"history": history}).recover_if_possible()
    return history


def test_comes_back_as_it_was(tmp_path):
    history = RunHistory()
    rows = [
        {"epoch": 1, "train_loss": 1 / 3, "valid_eer": 0.1, "learning_rate": 1e-7},
        {"epoch": 2, "train_loss": 0.25, "valid_eer": 0.05, "learning_rate": 3e-4},
    ]
    for row in rows:
        history.count(correct=1, seen=2)
        history.end_epoch(row)
    history.count(correct=3, seen=4)
    history.count(correct=4, seen=4)
    Checkpointer(tmp_path, {"history": history}).save_checkpoint()
    again = restarted(tmp_path)
    assert again.epochs == rows
    assert again.accuracy == 7 / 8
    assert again.best_epoch == 2
    again.count(correct=0, seen=8)
    assert again.accuracy == 7 / 16


def test_counts_begin_anew_with_each_epoch():
    history = RunHistory()
    assert history.accuracy == 0.0
    history.count(3, 4)
    history.end_epoch({"epoch": 1, "valid_eer": 0.5})
    assert history.accuracy == 0.0
    history.count(1, 4)
    assert history.accuracy == 0.25


def test_seconds_accumulate_over_restarts(tmp_path, clock):
    history = RunHistory()
    assert history.seconds == 0.0
    history.start_clock()
    clock.now += 10
    Checkpointer(tmp_path, {"history": history}).save_checkpoint()
    clock.now += 5  # lost with the process

    for expected in (17.0, 24.0):
        clock.now += 3600  # nothing runs
        history = RunHistory()
        checkpointer = Checkpointer(tmp_path, {"history": history})
        checkpointer.recover_if_possible()
        clock.now += 2  # to load is no training
        history.start_clock()
        clock.now += 7
        assert history.seconds == expected
        checkpointer.save_checkpoint()


def test_best_epoch_is_the_later_of_equals():
    history = RunHistory()
    for epoch, eer in enumerate([0.3, 0.1, 0.2, 0.1, 0.4], start=1):
        history.end_epoch({"epoch": epoch, "valid_eer": eer})
    assert history.best_epoch == 4


def test_a_clock_that_has_stopped_stands_still(clock):
    history = RunHistory()
    history.start_clock()
    clock.now += 7
    history.stop_clock()
    clock.now += 100
    assert history.seconds == 7
    history.start_clock()
    clock.now += 3
    history.stop_clock()
    assert history.seconds == 10
