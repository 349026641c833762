"""Trials under `torchrun`, each a training on several processes: the first rank runs
the study, the others follow its trainings."""

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from optuna.trial import FrozenTrial

from local_modules.audio import SpeechCache
from local_modules.errors import InputError, RunError
from local_modules.tuning.job import Job
from local_modules.tuning.study import live_trials
from local_modules.tuning.worker import Worker

LONGEST_WAIT = timedelta(days=7)  # for the first rank's next message
SECONDS_TO_MEET = 60.0


class Ranks:
    """The processes of `torchrun` as one trainer.

    Only the first rank sends: the settings of a training, and after each epoch whether
    it continues.

    Arguments
    ---------
    job : Job
        The study.
    train : callable
        `train_speaker.train`; it communicates in the default process group, which has
        to exist.
    """

    def __init__(self, job: Job, train: Callable[..., dict]):
        self.job = job
        self._train = train
        self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self._is_broken = False

    def run(self) -> Iterator[dict[int, FrozenTrial]]:
        """On the first rank: runs a study to its end.

        Yields
        ------
        dict
            The live trials by slot, after each trial.

        Raises
        ------
        RunError
            The ranks are out of step, after an error that perhaps not all have met.
        """
        worker = Worker(self.job, 0, self.train)
        for _ in worker.run():
            yield live_trials(worker.study)
            if self._is_broken:
                raise RunError(
                    f"{self.job.folder}: a trial has failed, perhaps not on all ranks; "
                    "the same command continues after it, and does so automatically "
                    "with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts "
                    "3"
                )

    def train(
        self,
        hparams_file,
        run_opts=None,
        overrides=None,
        cache=None,
        on_epoch=None,
        test=True,
    ) -> dict:
        """On the first rank: `train_speaker.train` on all ranks."""

        def announce(epochs):
            goes_on = False
            try:
                if on_epoch is not None:
                    on_epoch(epochs)
                goes_on = True
            finally:
                self._broadcast(goes_on)
                self._is_broken = goes_on

        self._broadcast((hparams_file, overrides, test))
        # Until it is known how the training ended.
        self._is_broken = True
        try:
            metrics = self._train(
                hparams_file, run_opts, overrides, cache, announce, test
            )
        except InputError:
            # The others know of one of `on_epoch`.
            self._is_broken = self._is_broken and not self._meet()
            raise
        self._is_broken = False
        return metrics

    def follow(self) -> None:
        """On the other ranks: runs the trainings that the first rank sends, until it
        says that it is done."""
        # Python does not handle a Ctrl-C while it waits for another rank.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        run_opts, cache = self.job.run_opts(), SpeechCache(self.job.cache_gib)

        def on_epoch(epochs):
            if not self._broadcast(None):
                raise _Ended

        while (training := self._broadcast(None)) is not None:
            hparams_file, overrides, test = training
            try:
                self._train(hparams_file, run_opts, overrides, cache, on_epoch, test)
            except _Ended:
                pass
            except InputError as error:
                if not self._meet():
                    sys.exit(f"rank {torch.distributed.get_rank()} alone: {error}")

    def dismiss(self) -> None:
        """On the first rank: lets the others end, unless they are in the middle of a
        training and can't receive this: then `torchrun` ends them."""
        if not self._is_broken:
            self._broadcast(None)

    def _broadcast(self, value):
        box = [value]
        torch.distributed.broadcast_object_list(box, group=self._group)
        return box[0]

    def _meet(self) -> bool:
        """Whether all ranks have met an error; if only this one has, the others wait
        for it in the middle of a training."""
        try:
            torch.distributed.monitored_barrier(
                self._group, timedelta(seconds=SECONDS_TO_MEET)
            )
        except RuntimeError:
            return False
        return True


class _Ended(Exception):
    """The first rank has ended a training after an epoch."""
