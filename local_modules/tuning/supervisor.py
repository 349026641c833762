"""The processes of a study on this machine: started, watched, replaced when killed."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from joblib import cpu_count
from optuna.trial import FrozenTrial
from tqdm import tqdm

from local_modules.errors import RunError
from local_modules.tuning.job import Job
from local_modules.tuning.study import Turnstile, live_trials
from local_modules.tuning.worker import log_file, run_process

CONTEXT = multiprocessing.get_context("spawn")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_STOP = 300.0  # of a validation, say; a second Ctrl-C doesn't wait
STOPPED = 130  # the status of a worker that a signal has stopped
MAX_DEATHS = 3  # in a row, of workers that had not begun a trial


def run_workers(
    job: Job, n_workers: int, train: Callable[..., dict]
) -> Iterator[dict[int, FrozenTrial]]:
    """Runs a study to its end.

    Arguments
    ---------
    job : Job
        The study.
    n_workers : int
        How many processes run trials at a time.
    train : callable
        `train_speaker.train`.

    Yields
    ------
    dict
        The live trials by slot, twice a second.

    Raises
    ------
    RunError
        A process has failed, or processes are repeatedly killed before they begin a
        trial.
    """
    study, turnstile = job.open_study(), Turnstile(job.folder)
    stop = CONTEXT.Event()
    # A numbered device, such as cuda:1, is the user's choice.
    deals_gpus = ":" not in str(job.run_opts()["device"])

    def start(index):
        process = CONTEXT.Process(target=run_process, args=(job, index, train, stop))
        with _environment(index, n_workers, deals_gpus), _interrupts_ignored():
            process.start()
        return process

    workers, deaths, n_begun = [], 0, 0
    try:
        for index in range(n_workers):
            workers.append(start(index))
        while any(worker.exitcode != 0 for worker in workers):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for index, worker in enumerate(workers):
                if worker.exitcode in (None, 0):
                    continue
                turnstile.recover(study)
                begun = len(study.get_trials(deepcopy=False))
                deaths = deaths + 1 if begun == n_begun else 1
                n_begun = begun
                has_failed = worker.exitcode > 0 and worker.exitcode != STOPPED
                if has_failed or deaths > MAX_DEATHS:
                    log = log_file(job, index)
                    raise RunError(
                        f"{job.folder}: worker {index} has ended (status "
                        f"{worker.exitcode}); {log} says why"
                        + (_last_words(log) if has_failed else "")
                    )
                workers[index] = start(index)
            yield live_trials(study)
    finally:
        stop.set()
        _end(workers)
    yield live_trials(study)


def _last_words(log: Path) -> str:
    """The last line of a worker's output, its error."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "".join(f": {line}" for line in text.splitlines()[-1:])


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started here ignores Ctrl-C until it is ready for it, so that none ends
    with the traceback of an import."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(index: int, n_workers: int, deals_gpus: bool) -> Iterator[None]:
    """The environment that a process needs before it imports torch: its share of the
    cores, and one of the GPUs, assigned in turn."""
    before = dict(os.environ)
    n_threads = max(1, cpu_count() // n_workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))
    n_gpus = torch.cuda.device_count()
    if n_gpus and deals_gpus:
        named = before.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(n) for n in range(n_gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % n_gpus]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(workers) -> None:
    """Lets the workers put their trials back, and ends those that don't."""
    under_way = [worker for worker in workers if worker.exitcode is None]
    for worker in under_way:
        os.kill(worker.pid, signal.SIGINT)
    if under_way:
        told = "Stopping at a checkpoint; Ctrl-C now stops at once."
        tqdm.write(told, file=sys.stderr)  # above the progress bar
    deadline = time.monotonic() + SECONDS_TO_STOP
    try:
        for worker in under_way:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
