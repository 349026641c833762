"""The record of a run's epochs, kept across restarts."""

import json
import time
from collections.abc import Mapping, Sequence

from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)


def best_row(epochs: Sequence[Mapping]) -> Mapping:
    """The epoch with the lowest `valid_eer`, the latest on a tie.

    Example
    -------
    >>> best_row([{"epoch": 1, "valid_eer": 0.1}, {"epoch": 2, "valid_eer": 0.1}])
    {'epoch': 2, 'valid_eer': 0.1}
    """
    return min(reversed(epochs), key=lambda row: row["valid_eer"])


@register_checkpoint_hooks
class RunHistory:
    """One row of figures per finished epoch, the running counts of the epoch under
    way, and the seconds spent; saved and restored with the checkpoint.

    Example
    -------
    >>> history = RunHistory()
    >>> history.count(correct=3, seen=4)
    >>> history.accuracy
    0.75
    >>> history.end_epoch({"epoch": 1, "valid_eer": 0.1})
    >>> history.end_epoch({"epoch": 2, "valid_eer": 0.2})
    >>> history.best_epoch
    1
    """

    def __init__(self):
        self.epochs: list[dict] = []
        self.correct = self.seen = 0
        self._earlier_seconds = 0.0
        self._started = None

    def start_clock(self) -> None:
        """Starts counting seconds, on top of those of earlier processes."""
        self._started = time.monotonic()

    def stop_clock(self) -> None:
        """Stops counting, so that saved and reported seconds agree exactly."""
        self._earlier_seconds, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds of training and validation so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._earlier_seconds + running

    def count(self, correct: int, seen: int) -> None:
        """Adds a batch's classifications to the epoch under way."""
        self.correct += correct
        self.seen += seen

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy of the epoch under way, a fraction."""
        return self.correct / max(self.seen, 1)

    def end_epoch(self, row: dict) -> None:
        """Ends the epoch under way with its row of figures."""
        self.epochs.append(row)
        self.correct = self.seen = 0

    @property
    def best_epoch(self) -> int:
        """Number of the epoch of `best_row`."""
        return best_row(self.epochs)["epoch"]

    @mark_as_saver
    def _save(self, path):
        state = {
            "epochs": self.epochs,
            "correct": self.correct,
            "seen": self.seen,
            "seconds": self.seconds,
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(state, file)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        self.epochs = state["epochs"]
        self.correct, self.seen = state["correct"], state["seen"]
        self._earlier_seconds = state["seconds"]
