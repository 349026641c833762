"""A study of trainings that take no time, in real processes and a real storage; a
program that the tests kill.

Its mishaps are {"kill": {"<trial>": [epochs after which its process is killed]},
"always_kill": [trials, in their second epoch], "raise": [trials], "nan": [trials],
"full_disk": {"<trial>": epoch}, "interrupt": {"<trial>": epoch}, "taken_for_dead":
{"<trial>": epoch}, "seconds": of an epoch, "sampler": in place of a random one,
"pruner": in place of none, "late": whether its time is over, "attempts": how many a
trial has, "outage": seconds that a database may be unavailable}.
"""

import errno
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

from local_modules.files import replacing
from local_modules.tuning import storage, supervisor, worker
from local_modules.tuning import study as study_module
from local_modules.tuning.job import Job
from local_modules.tuning.search import read_search
from local_modules.tuning.study import Turnstile, enqueue_defaults

# A killed worker of a database is noticed in seconds instead of a minute.
storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 8
worker.SECONDS_BETWEEN_LOOKS = 0.1

ROOT = Path(__file__).parents[3]
N_EPOCHS = 4
SEARCH = """
n_trials: 9
objective: eer
proxy: {number_of_epochs: 4}
space: {lr: {type: float, low: 0.0001, high: 0.01, log: True}}
sampler_seed: !PLACEHOLDER
sampler: !new:optuna.samplers.SAMPLER
pruner: !new:optuna.pruners.PRUNER
"""


def train(hparams_file, run_opts, overrides, cache, on_epoch, test):
    """As `train_speaker.train`: continues from what it has saved."""
    assert test is False
    folder = Path(overrides["output_folder"])
    mishaps = json.loads(os.environ["MISHAPS"])
    number = folder.name
    (folder / "save").mkdir(parents=True, exist_ok=True)
    saved = folder / "save" / "rows.json"
    rows = json.loads(saved.read_text()) if saved.exists() else []
    if rows:
        on_epoch(rows)
    while len(rows) < N_EPOCHS:
        time.sleep(mishaps.get("seconds", 0.0))
        epoch = len(rows) + 1
        with open(folder / "epochs_run", "a") as file:
            file.write(f"{epoch}\n")
        if int(number) in mishaps.get("always_kill", ()) and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        eer = 0.01 * (math.log10(overrides["lr"]) + 3) ** 2 + 0.1 / epoch
        rows.append({"epoch": epoch, "valid_eer": eer, "valid_min_dcf": 1.0})
        rows[-1] |= {"train_loss": 1.0, "train_accuracy": 0.5, "learning_rate": 0.1}
        rows[-1] |= {"budget_used": epoch / N_EPOCHS, "seconds": 10.0 * epoch}
        with replacing(saved) as file:
            json.dump(rows, file)
        taken = folder / f"taken_{epoch}"
        if (
            mishaps.get("taken_for_dead", {}).get(number) == epoch
            and not taken.exists()
        ):
            taken.touch()
            fail(folder.parents[1], int(number))
        on_epoch(rows)
        killed = folder / f"killed_{epoch}"
        if epoch in mishaps.get("kill", {}).get(number, ()) and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if int(number) in mishaps.get("raise", ()):
            raise MemoryError("no room for\nthis")
        if mishaps.get("full_disk", {}).get(number) == epoch and not killed.exists():
            killed.touch()
            raise OSError(errno.ENOSPC, "No space left on device", str(saved))
        if mishaps.get("interrupt", {}).get(number) == epoch and not killed.exists():
            killed.touch()
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
    eer = (
        float("nan") if int(number) in mishaps.get("nan", ()) else rows[-1]["valid_eer"]
    )
    valid = {"eer": eer, "min_dcf": 1.0}
    return {"valid": valid, "n_parameters": 7, "train_seconds": 1.0}


def fail(folder, number):
    """Fails a trial as another machine does that has heard of it for too long."""
    study = storage.open_study(None, folder, "quick", 1)
    trial = study_module.live_trials(study)[number]
    Turnstile._fail(study, trial)


def begin(folder, url, n_trials, mishaps=None):
    """The job of a study that has been begun, now or before; an URL of None is the
    journal."""
    mishaps = mishaps or {}
    os.environ["MISHAPS"] = json.dumps(mishaps)
    folder.mkdir(parents=True, exist_ok=True)
    search_file = folder / "search.yaml"
    with replacing(search_file) as file:
        sampler = mishaps.get("sampler", "RandomSampler {seed: !ref <sampler_seed>}")
        pruner = mishaps.get("pruner", "NopPruner")
        file.write(SEARCH.replace("SAMPLER", sampler).replace("PRUNER", pruner))
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    job = Job(
        recipe=recipe,
        search_file=str(search_file),
        arguments=("--device", "cpu"),
        overrides={},
        search=read_search(search_file, recipe, {}),
        folder=folder,
        name="quick",
        storage=url,
        n_trials=n_trials,
        deadline=0.0 if mishaps.get("late") else None,
        cache_gib=0.0,
        seed=1,
    )
    study = job.open_study()
    enqueue_defaults(study, job.search.defaults)
    Turnstile(folder).recover(study)
    return job


def run(folder, url, n_trials, n_workers, mishaps):
    """Runs a study, or continues it."""
    # A test that kills often may allow for more attempts.
    study_module.MAX_ATTEMPTS = mishaps.get("attempts", study_module.MAX_ATTEMPTS)
    storage.OUTAGE_SECONDS = mishaps.get("outage", storage.OUTAGE_SECONDS)
    supervisor.CONTEXT = multiprocessing.get_context("fork")  # at work at once
    job = begin(folder, url, n_trials, mishaps)
    for _ in supervisor.run_workers(job, n_workers, train):
        pass
    return 0
