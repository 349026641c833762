"""The work of a process of a study: one trial after another."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import optuna
import torch
from filelock import Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from torch.utils.tensorboard import SummaryWriter

from local_modules.audio import SpeechCache
from local_modules.errors import (
    InputError,
    RunError,
    exit_status,
    is_disk_full,
    one_line,
)
from local_modules.training.history import best_row
from local_modules.tuning.job import Job
from local_modules.tuning.objectives import OBJECTIVES, by_budget, objective_value
from local_modules.tuning.search import make_sampler_and_pruner, suggest
from local_modules.tuning.storage import StorageGone
from local_modules.tuning.study import (
    BEGUN,
    EPOCHS,
    REASON,
    SLOT,
    SURPLUS,
    Turnstile,
    WithoutReplaced,
    begin_attempt,
    forgive_attempt,
    is_journal,
    is_surplus,
    live_trials,
)

BEST_OF_A_TRIAL = ("valid_eer", "valid_min_dcf", "train_accuracy")  # for TensorBoard
SECONDS_BETWEEN_LOOKS = 2.0  # at trials that others have under way
MAX_FAILURES = 3  # in a row: then the cause is not the single trial
# Until a file server frees the lock of a machine that is gone, or a process taken for
# dead has finished its epoch.
SECONDS_TO_LET_GO = 600.0


def run_process(job: Job, index: int, train: Callable[..., dict], stop: Event) -> None:
    """Runs trials in a process of its own until the study is complete; their output
    goes to its `log_file`. It is started with Ctrl-C ignored.

    Arguments
    ---------
    job : Job
        The study.
    index : int
        Number of the process among those of this machine, from 0.
    train : callable
        `train_speaker.train`.
    stop : multiprocessing.Event
        Set when the study ends, in case Ctrl-C came too early to be noticed.
    """
    path = log_file(job, index)
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not stop.is_set():
            for _ in Worker(job, index, train).run():
                pass

    status = exit_status(f"worker {index}", run)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
    sys.exit(status)


def log_file(job: Job, index: int) -> Path:
    """The file for the output of a process of this machine."""
    return job.folder / "logs" / f"{socket.gethostname()}-{index}.log"


class Worker:
    """Runs the trials of a study, one after the other.

    Arguments
    ---------
    job : Job
        The study.
    index : int
        Number of the worker among those of this machine, from 0.
    train : callable
        `train_speaker.train`.
    """

    def __init__(self, job: Job, index: int, train: Callable[..., dict]):
        self.job = job
        self.train = train
        self.run_opts = job.run_opts()
        self.cache = SpeechCache(job.cache_gib)
        self.turnstile = Turnstile(job.folder)
        self.study = job.open_study()
        # Draw other values than earlier starts, other workers and, with a database,
        # other machines.
        trials = self.study.get_trials(deepcopy=False)
        n_begun = sum(trial.state != TrialState.WAITING for trial in trials)
        start = f"{socket.gethostname()} {os.getpid()}" if job.storage else ""
        key = np.random.SeedSequence(
            [job.seed, index, n_begun, zlib.crc32(start.encode())]
        )
        sampler, self.study.pruner = make_sampler_and_pruner(
            job.search_file, int(key.generate_state(1)[0])
        )
        if isinstance(sampler, optuna.samplers.GridSampler):
            # Its seed orders the grid, which has to be the same for all workers.
            sampler, _ = make_sampler_and_pruner(job.search_file, job.seed)
        self.study.sampler = sampler
        self.n_failures = 0  # since a trial was complete or pruned
        self.last_step = -1  # of the trial under way, reported to the pruner

    def run(self) -> Iterator[None]:
        """Runs trials until the study is complete. Waits for those of other processes
        too: one that is interrupted, as by Ctrl-C, is put back, and may run here.

        Yields
        ------
        None
            After each trial.

        Raises
        ------
        RunError
            Several trials in a row have failed here, or another process does not
            release a trial. Whatever is raised, the trial under way is put back.
        """
        # What is imported stays: garbage collection after a trial need not search it.
        gc.freeze()
        try:
            yield from self._run_trials()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            raise
        finally:
            self.turnstile.recover(self.study)

    def _run_trials(self) -> Iterator[None]:
        job = self.job
        while True:
            # Looking and beginning take one turn: no other process draws the same.
            with contextlib.ExitStack() as turn:
                turn.enter_context(self.turnstile.turn)
                self.turnstile.recover(self.study)
                live = list(live_trials(self.study).values())[: job.n_trials]
                states = {trial.state for trial in live}
                has_more = len(live) < job.n_trials and not self._has_drawn_all()
                if self._is_late() and live[0].state != TrialState.WAITING:
                    break
                if begins := TrialState.WAITING in states or has_more:
                    self._run_trial(turn)
            if begins:
                yield
            elif TrialState.RUNNING in states:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                break

    def _is_late(self) -> bool:
        return self.job.deadline is not None and time.time() >= self.job.deadline

    def _has_drawn_all(self) -> bool:
        """Whether a grid is exhausted, which its sampler would begin again, or the
        sampler has stopped the study, as BruteForceSampler does."""
        if self.study._stop_flag:
            return True
        sampler = self.study.sampler
        if not isinstance(sampler, optuna.samplers.GridSampler):
            return False
        points = [t.system_attrs for t in self.study.get_trials(deepcopy=False)]
        drawn = {
            point["grid_id"]
            for point in points
            if sampler._same_search_space(point.get("search_space", {}))
        }
        return len(drawn) == len(sampler._all_grids)

    def _run_trial(self, turn: contextlib.ExitStack) -> None:
        """Runs the next trial; the turn ends when it has begun."""
        begun = []
        # Until the trial's lock is held, it looks like one whose process is gone.
        with contextlib.ExitStack() as trial_lock:

            def objective(trial):
                begun.append(trial)
                was_under_way = BEGUN in trial.user_attrs
                number = begin_attempt(self.study, trial)
                if is_surplus(self.study, trial, self.job.n_trials):
                    if number is not None and was_under_way:
                        forgive_attempt(trial)  # it is put back behind the others
                    else:
                        trial.set_user_attr(REASON, SURPLUS)
                    raise _TrialFailed(SURPLUS)
                lock = self.turnstile.trial_lock(number)
                if not is_journal(self.study):
                    # A process taken for dead may hold it; others need not wait.
                    turn.close()
                folder = Path(lock.lock_file).parent
                try:
                    trial_lock.enter_context(lock.acquire(timeout=SECONDS_TO_LET_GO))
                except Timeout:
                    forgive_attempt(trial)
                    raise RunError(
                        f"{folder}: another process is training there; once it has "
                        "ended, the same command continues"
                    ) from None
                turn.close()
                return self._objective(trial, folder)

            # The lock is held until Optuna has the outcome.
            try:
                self.study.optimize(objective, n_trials=1, catch=(_TrialFailed,))
            except UnboundLocalError as error:
                # Optuna's own, where it can't look up what became of the trial.
                raise error.__context__ from None
            except (ValueError, UpdateFinishedTrialError):
                # Taken for dead while the machine slept or the database was down: it
                # has been put back, and another process continues it. Or the database
                # stored the outcome, and went down before it confirmed that.
                if not begun or not self._stored(begun[0]).state.is_finished():
                    raise
            if begun:
                self._close(self._stored(begun[0]))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stored(self, trial: optuna.Trial) -> FrozenTrial:
        """A trial as it is in the storage now."""
        return self.study._storage.get_trial(trial._trial_id)

    def _objective(self, trial: optuna.Trial, folder: Path) -> list[float]:
        try:
            metrics = self._train(trial, folder)
            trial.set_user_attr("metrics", metrics)
            values = [objective_value(metrics, o) for o in self.job.search.objectives]
            if not np.isfinite(values).all():
                raise RunError(f"the objective is {values}")
        except (UpdateFinishedTrialError, StorageGone):
            raise  # no failure: it goes on, in another process or with a later start
        except optuna.TrialPruned:
            self.n_failures = 0
            raise
        except KeyboardInterrupt:
            forgive_attempt(trial)
            raise
        except Exception as error:
            # A fault of this machine leaves no reason: the trial is tried again.
            if is_disk_full(error):
                forgive_attempt(trial)
                raise
            reason = one_line(error)
            if not isinstance(error, InputError):
                traceback.print_exc()
                reason = f"{type(error).__name__}: {reason}"
            self.n_failures += 1
            if self.n_failures == MAX_FAILURES:
                forgive_attempt(trial)
                raise RunError(
                    f"{MAX_FAILURES} trials in a row have failed on "
                    f"{socket.gethostname()}: {reason}"
                ) from error
            trial.set_user_attr(REASON, reason)
            raise _TrialFailed(reason) from error
        self.n_failures = 0
        return values

    def _train(self, trial: optuna.Trial, folder: Path) -> dict:
        self.last_step = -1
        overrides = {
            **self.job.overrides,
            **suggest(trial, self.job.search.space),
            "output_folder": str(folder),
        }

        def on_epoch(epochs):
            trial.set_user_attr(EPOCHS, epochs)
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                raise KeyboardInterrupt
            for step, value in self._unreported(epochs):
                trial.report(value, step)
                # The recipe's own values run to the end, for comparison.
                if self._should_prune(trial) and trial.user_attrs[SLOT] != 0:
                    raise optuna.TrialPruned

        return self.train(
            self.job.recipe,
            self.run_opts,
            overrides,
            cache=self.cache,
            on_epoch=on_epoch,
            test=False,
        )

    def _should_prune(self, trial: optuna.Trial) -> bool:
        """The pruner's decision, which it also notes for later trials."""
        reported = self._stored(trial)
        return self.study.pruner.prune(WithoutReplaced(self.study), reported)

    def _unreported(self, epochs: list[dict]) -> Iterator[tuple[int, float]]:
        """The steps and values that this attempt has not reported to the pruner yet.
        The pruner has to be asked after each: of two pruned trials, the sampler takes
        the one with the later report for better. Optuna does not prune by several
        objectives."""
        first, *others = (OBJECTIVES[name] for name in self.job.search.objectives)
        if not others and first.by_epoch is not None:
            for step, value in by_budget(epochs, first).items():
                if step > self.last_step:
                    self.last_step = step
                    yield step, value

    def _close(self, trial: FrozenTrial) -> None:
        """Writes a trial's figures when it has ended, and removes its checkpoints."""
        reason = trial.user_attrs.get(REASON)
        if trial.state == TrialState.FAIL and reason in (None, SURPLUS):
            return  # put back, or another's
        folder = self.job.folder / "trials" / str(trial.user_attrs[SLOT])
        shutil.rmtree(folder / "save", ignore_errors=True)
        if epochs := trial.user_attrs.get(EPOCHS):
            best = best_row(epochs)
            metrics = {f"best/{name}": best[name] for name in BEST_OF_A_TRIAL}
            with SummaryWriter(folder / "tensorboard") as writer:
                # TensorBoard accepts no None.
                params = {
                    k: str(v) if v is None else v for k, v in trial.params.items()
                }
                writer.add_hparams(params, metrics, run_name=".")


class _TrialFailed(Exception):
    """A trial that has failed; the study goes on."""
