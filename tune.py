#!/usr/bin/env python3
"""Searches the hyperparameters of a recipe for the lowest equal error rate.

    python tune.py [hparams/conformer.yaml] [--n_trials 50] [--workers 1] [--retrain]
                   [--key value ...]

Each trial is a short training with other values, judged by the equal error rate (EER)
on the validation speakers; the first has the recipe's own values. The search space and
settings are in a file of the recipe's name, hparams/search/conformer.yaml. The same
command continues a study; with the same --storage, also from other machines. Under
torchrun, each trial trains on all processes.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_environment_description

from local_modules import config
from local_modules.command_line import parse_command_line
from local_modules.corpus import checksums, overview, prepare_corpus, read_corpus
from local_modules.distributed import meet_ranks
from local_modules.errors import (
    InputError,
    LineParser,
    RunError,
    check_positive,
    exit_status,
)
from local_modules.files import check_writable, replacing
from local_modules.tuning import outcome
from local_modules.tuning.figures import make_pictures, write_pictures
from local_modules.tuning.job import Job
from local_modules.tuning.objectives import objective_text
from local_modules.tuning.progress import check_first, first_screen, watch
from local_modules.tuning.ranks import Ranks
from local_modules.tuning.report import write_report
from local_modules.tuning.retrain import retrain
from local_modules.tuning.search import (
    make_sampler_and_pruner,
    read_search,
    search_file_of,
)
from local_modules.tuning.storage import hide_password, point_to_storage
from local_modules.tuning.study import (
    SLOT,
    Turnstile,
    check_claim,
    claim,
    enqueue_defaults,
    has_ended,
    live_trials,
)
from local_modules.tuning.supervisor import run_workers
from train_speaker import train

RECIPE = "hparams/conformer.yaml"
RETRAINED = "retrained.json"  # in the study's folder
MANIFESTS = ("manifest_folder", "skip_prep")  # set by the study for all its trainings


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this program, and the remaining arguments, for the recipe."""
    parser = LineParser(
        prog="tune.py",
        usage=f"tune.py [{RECIPE}] [options] [--key value ...]",
        description=__doc__.splitlines()[0],
        epilog="--key value: as for train_speaker.py, for every training; in trials, "
        "the proxy of the search file takes precedence",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--search",
        help="search space and settings; default: the file of the recipe's name in "
        "search/ beside it",
    )
    add("--n_trials", type=int, help="total number of trials of the study")
    add("--objective", type=lambda text: text.split(","), help="eer, min_dcf, ...")
    add("--study", help="its name; default: the recipe's")
    add("--storage", help="URL of a database, for many machines")
    add("--workers", type=int, default=1, help="trials at a time on this machine")
    add("--timeout", type=float, help="minutes after which no new trial is started")
    add(
        "--retrain",
        type=int,
        nargs="?",
        const=3,
        metavar="SEEDS",
        help="train the best and the default values in full with SEEDS seeds, and test",
    )
    # As a positional argument, it could be the value of an option unknown here.
    n_files = int(bool(argv) and not argv[0].startswith("-"))
    recipe, argv = argv[:n_files], argv[n_files:]
    options, rest = parser.parse_known_args(argv)
    check_positive(options, "n_trials", "workers", "timeout", "retrain")
    options.recipe = recipe[0] if recipe else RECIPE
    options.search = options.search or search_file_of(options.recipe)
    return options, rest


def make_job(options: argparse.Namespace, rest: list[str]) -> tuple[Job, dict]:
    """What the workers need to know, and the overrides of a full training."""
    _, run_opts, overrides = parse_command_line([options.recipe, *rest])
    for name in ("debug", "test_only"):
        if run_opts[name]:
            raise InputError(f"--{name}: is for train_speaker.py; leave it out")
    config.check_overrides(options.recipe, overrides)
    for key in ("output_folder", "save_folder", *MANIFESTS):
        if key in overrides:
            raise InputError(f"--{key}: is set by the study; leave it out")
    search = read_search(options.search, options.recipe, overrides, options.objective)
    make_sampler_and_pruner(options.search, 0)  # reports an error in them now
    name = options.study or Path(options.recipe).stem
    folder = Path("results/tune") / name
    manifests = dict(zip(MANIFESTS, (str(folder / "manifests"), True), strict=True))
    full = {**overrides, **manifests}
    config.check_ranges(config.plain_values(options.recipe, {**full, **search.proxy}))
    values = config.plain_values(options.recipe, full)
    config.check_ranges(values)  # of the full trainings
    minutes = options.timeout
    job = Job(
        recipe=options.recipe,
        search_file=options.search,
        arguments=tuple(rest),
        overrides={**full, **search.proxy},
        search=search,
        folder=folder,
        name=name,
        storage=options.storage,
        n_trials=options.n_trials or search.n_trials,
        deadline=None if minutes is None else time.time() + 60 * minutes,
        cache_gib=values["cache_gib"],
        seed=values["seed"],
    )
    return job, full


def finish(job: Job, study: optuna.Study, full: dict) -> None:
    """Writes the table of trials, the best recipe, the pictures and the report, and
    prints where they are."""
    folder, name = job.folder, job.search.objectives[0]
    outcome.write_trial_table(study, job.search.objectives, folder / "trials.csv")
    best = outcome.best_trial(study)
    if best is None:
        print(f"No trial is complete yet; {folder / 'trials.csv'} lists those so far.")
        return
    live, number = live_trials(study), best.user_attrs[SLOT]
    value = objective_text(name, best.values[0])
    outcome.write_recipe(
        job.recipe,
        {k: v for k, v in full.items() if k not in MANIFESTS} | best.params,
        f"{folder}/best/<seed>",
        f"Trial {number} of {len(live)}, {value} on valid, from {job.recipe}",
        folder / "best.yaml",
    )
    command = shlex.join(job.command(str(folder / "best.yaml")))
    pictures = make_pictures(study, job.search.objectives)
    write_pictures(pictures, folder / "plots")
    write_report(
        study,
        job.search,
        job.recipe,
        command,
        pictures,
        read_retrained(folder / RETRAINED, number),
        folder / "report.html",
    )
    print(f"\nbest      trial {number}: {value}")
    print(f"          {outcome.params_text(best.params)}")
    if live[0].state == TrialState.COMPLETE:  # a pruned trial has a value too
        print(f"baseline  trial 0: {objective_text(name, live[0].values[0])}")
    print(f"report    {folder / 'report.html'}")
    print(f"pictures  {folder / 'plots'}")
    print(f"train it  {command}")


def read_retrained(path: Path, best: int) -> dict | None:
    """Results of the full trainings, unless they are of an earlier best trial."""
    if not path.exists():
        return None
    results = json.loads(path.read_text())
    number = results.get("best", results["defaults"])["trial"]
    return results if number == best else None


def tune(argv: list[str]) -> None:
    """Starts or continues a study, and reports on it."""
    options, rest = parse(argv)
    job, full = make_job(options, rest)
    meet_ranks(job.run_opts())
    if not torch.distributed.is_initialized():
        lead(job, full, options, run_workers(job, options.workers, train), train)
        return
    if options.workers > 1:
        raise InputError(
            "--workers: leave it out under torchrun, whose processes share each trial"
        )
    ranks = Ranks(job, train)
    if if_main_process():
        try:
            lead(job, full, options, ranks.run(), ranks.train)
        except Exception:  # they receive a Ctrl-C themselves
            ranks.dismiss()
            raise
        ranks.dismiss()
    else:
        ranks.follow()


def lead(
    job: Job,
    full: dict,
    options: argparse.Namespace,
    running: Iterator[dict[int, FrozenTrial]],
    train: Callable[..., dict],
) -> None:
    """Prepares a study, runs it, and writes its results.

    Arguments
    ---------
    job : Job
        The study.
    full : dict
        Overrides of a full training.
    options : argparse.Namespace
        The command line's.
    running : iterator of dict
        Runs the study; yields the live trials by slot.
    train : callable
        As `train_speaker.train`.
    """
    check_writable(job.folder)
    study = job.open_study()
    check_claim(study, "settings", job.settings())
    Turnstile(job.folder).recover(study)
    live = live_trials(study)
    check_first(live)
    n_done = sum(has_ended(trial) for trial in live.values())
    print(first_screen(job, options.workers, n_done), flush=True)
    with replacing(job.folder / "env.log") as file:
        file.write(get_environment_description())
    settings = config.plain_values(job.recipe, full)
    settings["skip_prep"] = False  # True is for the trainings
    begun_with = study.user_attrs.get("data", {}).get("corpus")
    prepare_corpus(settings, begun_with)
    print(overview(*read_corpus(settings["manifest_folder"])), flush=True)
    # Only after all checks: a study that can't start must leave its name free.
    point_to_storage(job.storage, job.folder)
    claim(study, "settings", job.settings())
    claim(study, "data", {"corpus": checksums(settings["manifest_folder"])})
    enqueue_defaults(study, job.search.defaults)
    try:
        if n_done < job.n_trials:
            watch(job, study, running)
        if options.retrain:
            retrain_best(job, study, full, options.retrain, train)
    finally:
        finish(job, study, full)


def retrain_best(
    job: Job,
    study: optuna.Study,
    full: dict,
    n_seeds: int,
    train: Callable[..., dict],
) -> None:
    """Trains the best trial's values and the recipe's own in full, and tests them."""
    best = outcome.best_trial(study)
    if best is None:
        raise RunError(f"{job.folder}: no trial is complete, so none can be retrained")
    run_opts = parse_command_line([job.recipe, *job.arguments])[1]
    systems = {"defaults": (0, full)}
    if best.user_attrs[SLOT] != 0:
        systems["best"] = (best.user_attrs[SLOT], {**full, **best.params})
    # Of two such commands at the same time, the second reuses the first's trainings.
    lock = FileLock(job.folder / ".retrain.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        print(f"{job.folder}: waiting for another process to retrain", flush=True)
        held = lock.acquire()
    with held:
        retrain(
            job.recipe,
            systems,
            range(job.seed, job.seed + n_seeds),
            job.folder / RETRAINED,
            run_opts,
            train,
        )


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a failed study, 2 for wrong usage, 130 for Ctrl-C.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command = shlex.join(["python", "tune.py", *map(hide_password, argv)])
    return exit_status("tune.py", lambda: tune(argv), f"To continue: {command}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
