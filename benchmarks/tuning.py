#!/usr/bin/env python3
"""Do pruning and sharing pay off? tune.py against the same search without them.

    python benchmarks/tuning.py [--n_trials 50] [--seeds 3] [--share 3]
                                [--again 3] [--search FILE] [--recipe FILE]
                                [--key value ...]

For each seed, first a study as one would run it by hand: no pruning, and each trial a
separate train_speaker.py that reports through SpeechBrain's --hpopt. Then tune.py on
the same space, with a third of that time. Both have the same sampler, the same corpus
and the same first trial. CPU time is that of all processes. As the best of many trials
is partly luck, its values and the recipe's own are trained again with other seeds. Run
again, the same command continues.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    SETTINGS,
    children_cpu_seconds,
    once,
    prepare_noted,
    run_to_its_end,
    typed,
)
from local_modules import config  # noqa: E402
from local_modules.command_line import parse_command_line  # noqa: E402
from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    RunError,
    check_positive,
    exit_status,
    one_line,
)
from local_modules.files import replacing  # noqa: E402
from local_modules.plots import BLUE, VERMILLION, save_figure, tidy  # noqa: E402
from local_modules.tuning.outcome import spread_text  # noqa: E402
from local_modules.tuning.search import (  # noqa: E402
    Search,
    make_sampler_and_pruner,
    read_search,
    suggest,
)
from local_modules.tuning.storage import open_study  # noqa: E402
from local_modules.tuning.study import EPOCHS, live_trials  # noqa: E402

FOLDER = Path("results/benchmarks/tuning")
MANIFESTS = "manifests"
COSTS = "costs_of_"  # followed by a trial's number, in the study
MANY_TRIALS = 100_000  # time ends the study
OTHER_SEED = 101  # not one of the searches'


def by_hand(
    folder: Path, search: Search, options: argparse.Namespace, seed: int
) -> dict:
    """Runs an unpruned study with a process for each trial.

    Returns
    -------
    dict
        `best_eer` (a fraction), `best_params`, `cpu_seconds` and `seconds` of all
        trials, `n_trials`, and `curve`: CPU seconds and the best EER so far after each
        trial.
    """
    url = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(study_name="by_hand", storage=url, load_if_exists=True)
    # Does not draw the values from before an interruption again.
    key = np.random.SeedSequence([seed, len(study.trials)])
    study.sampler, _ = make_sampler_and_pruner(
        options.search, int(key.generate_state(1)[0])
    )
    if not study.trials:
        study.enqueue_trial(search.defaults)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # It was interrupted.
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    n_done = len(_with_costs(study))
    progress = tqdm(total=search.n_trials, initial=n_done, desc="by hand", unit="trial")
    while len(_with_costs(study)) < search.n_trials:
        trial = study.ask()
        params = suggest(trial, search.space)
        place = folder / str(trial.number)
        reports = {
            "OPTUNA_STORAGE": url,
            "OPTUNA_STUDY_NAME": "by_hand",
            "OPTUNA_TRIAL_NUMBER": str(trial.number),
        }
        cpu, start = children_cpu_seconds(), time.monotonic()
        try:
            train(options, search, params, seed, place, reports)
        except RunError as error:  # no other InputError
            progress.write(f"trial {trial.number} failed: {error}")
            study.tell(trial, state=TrialState.FAIL)
        costs = {
            "cpu_seconds": children_cpu_seconds() - cpu,
            "seconds": time.monotonic() - start,
        }
        study.set_user_attr(f"{COSTS}{trial.number}", costs)
        progress.update()
    progress.close()
    trials = _with_costs(study)
    costs = [study.user_attrs[f"{COSTS}{trial.number}"] for trial in trials]
    cpu_seconds = np.cumsum([cost["cpu_seconds"] for cost in costs])
    values = [np.inf if trial.value is None else trial.value for trial in trials]
    best = np.minimum.accumulate(values)
    if not np.isfinite(best[-1]):
        raise RunError(f"{folder}: no trial is complete")
    return {
        "best_eer": best[-1],
        "best_params": trials[int(np.argmin(values))].params,
        "cpu_seconds": cpu_seconds[-1],
        "seconds": sum(cost["seconds"] for cost in costs),
        "n_trials": len(trials),
        "curve": np.stack([cpu_seconds, best], axis=-1).tolist(),
    }


def train(
    options: argparse.Namespace,
    search: Search,
    params: dict,
    seed: int,
    output_folder: Path,
    reports: dict | None = None,
) -> None:
    """Runs a trial's training in a separate process.

    Arguments
    ---------
    options : argparse.Namespace
        Of the command line.
    search : Search
        Its proxy has the training's settings.
    params : dict
        Values of what is searched.
    seed : int
        Of the training.
    output_folder : Path
        Of the run.
    reports : dict, optional
        Environment variables that name the trial that it reports to.
    """
    values = {
        **search.proxy,
        **params,
        "seed": seed,
        "output_folder": str(output_folder),
        "manifest_folder": str(FOLDER / options.name / MANIFESTS),
        "skip_prep": True,
    }
    process = subprocess.run(
        [sys.executable, str(ROOT / "train_speaker.py"), options.recipe]
        + [*options.rest, "--noprogressbar", *typed(values)]
        + (["--hpopt", "True", "--hpopt_mode", "optuna"] if reports else []),
        env={**os.environ, **(reports or {})},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        said = one_line(process.stderr[-2000:])
        error = f"{output_folder}: {said}; its log.txt has more"
        # Only a failure of the trial itself lets the benchmark go on. A crash has the
        # same status, but its last line is that of a traceback.
        last = process.stderr.strip().rpartition("\n")[2]
        has_told = last.startswith("train_speaker.py: ")
        is_its_own = has_told and process.returncode == RunError.exit_status
        raise RunError(error) if is_its_own else InputError(error)


def again(
    options: argparse.Namespace, search: Search, params: dict, folder: Path
) -> list[float]:
    """Trains a trial's values with seeds from `OTHER_SEED` on, once.

    Returns
    -------
    list of float
        EERs of the best epochs on valid, as fractions.
    """

    def train_all():
        eers = []
        seeds = range(OTHER_SEED, OTHER_SEED + options.again)
        for seed in tqdm(seeds, desc=folder.name, unit="seed"):
            train(options, search, params, seed, folder / str(seed))
            metrics = json.loads((folder / str(seed) / "metrics.json").read_text())
            eers.append(metrics["valid"]["eer"])
        return {"eers": eers}

    return once(folder / "result.json", train_all)["eers"]


def _with_costs(study: optuna.Study) -> list[FrozenTrial]:
    """The finished or failed trials whose costs are known; those of an interrupted one
    are not."""
    return [
        trial
        for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
        if f"{COSTS}{trial.number}" in study.user_attrs
    ]


def by_tune(options: argparse.Namespace, seed: int, minutes: float) -> dict:
    """Runs tune.py for `minutes`.

    Returns
    -------
    dict
        As `by_hand`; also `n_pruned`, and `overhead_seconds` per trial: the time from
        the start of the first to the end of the last that wasn't training.
    """
    name = f"benchmark_{options.name}_{seed}"
    folder = Path("results/tune") / name
    # The costs of an interrupted one are not known.
    shutil.rmtree(folder, ignore_errors=True)
    cpu, start = children_cpu_seconds(), time.monotonic()
    status = run_to_its_end(
        [sys.executable, str(ROOT / "tune.py"), options.recipe]
        + ["--search", options.search, "--study", name]
        + ["--n_trials", f"{MANY_TRIALS}", "--timeout", f"{minutes}"]
        + [*options.rest, "--seed", f"{seed}"],
    )
    if status != 0:
        raise RunError(f"{folder}: tune.py ended with status {status}")
    cpu_seconds = children_cpu_seconds() - cpu
    seconds = time.monotonic() - start
    study = open_study(None, folder, name, 1)
    trials = [t for t in live_trials(study).values() if t.user_attrs.get(EPOCHS)]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise RunError(f"{folder}: no trial is complete")
    begin = trials[0].datetime_start.timestamp()
    span = trials[-1].datetime_complete.timestamp() - begin
    trained = sum(trial.user_attrs[EPOCHS][-1]["seconds"] for trial in trials)
    # CPU time isn't known by trial: it is distributed by elapsed time.
    ends = [
        cpu_seconds * (1 - (begin + span - t.datetime_complete.timestamp()) / seconds)
        for t in complete
    ]
    best = np.minimum.accumulate([trial.value for trial in complete])
    return {
        "best_eer": best[-1],
        "best_params": min(complete, key=lambda trial: trial.value).params,
        "cpu_seconds": cpu_seconds,
        "seconds": seconds,
        "n_trials": len(trials),
        "n_pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "overhead_seconds": (span - trained) / len(trials),
        "curve": np.stack([ends, best], axis=-1).tolist(),
    }


def table(results: dict[int, tuple[dict, dict]], own: list[float]) -> str:
    """Results by seed as a Markdown table, and below it those of the recipe's `own`
    values, trained again."""
    lines = [
        "| seed | by hand: trials | CPU min | best valid EER | trained again "
        "| tune.py: trials (pruned) | CPU min | of the former | best valid EER "
        "| trained again | overhead of a trial | by hand after that CPU time |",
        "| --- " * 12 + "|",
    ]
    for seed, (hand, tuned) in results.items():
        by_then = [e for used, e in hand["curve"] if used <= tuned["cpu_seconds"]]
        spreads = [spread_text(way["again"], 100, " %") for way in (hand, tuned)]
        lines.append(
            f"| {seed} | {hand['n_trials']} | {hand['cpu_seconds'] / 60:.1f} "
            f"| {100 * hand['best_eer']:.2f} % | {spreads[0]} "
            f"| {tuned['n_trials']} ({tuned['n_pruned']}) "
            f"| {tuned['cpu_seconds'] / 60:.1f} "
            f"| {100 * tuned['cpu_seconds'] / hand['cpu_seconds']:.0f} % "
            f"| {100 * tuned['best_eer']:.2f} % | {spreads[1]} "
            f"| {tuned['overhead_seconds']:.2f} s "
            f"| {f'{100 * by_then[-1]:.2f} %' if by_then else 'none'} |"
        )
    own_spread = spread_text(own, 100, " %")
    return "\n".join([*lines, "", f"The recipe's own values again: {own_spread}"])


def picture(results: dict[int, tuple[dict, dict]], path: Path) -> None:
    """Draws the best EER so far over the CPU time, for both methods."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for index, pair in enumerate(results.values()):
        for result, colour, label in zip(
            pair,
            (BLUE, VERMILLION),
            ("a process for each trial", "tune.py"),
            strict=True,
        ):
            seconds, eer = np.array(result["curve"]).T
            label = label if index == 0 else None
            axes.step(seconds / 60, 100 * eer, where="post", color=colour, label=label)
    axes.set_title("What a search finds in its time, by seed", loc="left")
    axes.set_xlabel("CPU time (min)")
    axes.set_ylabel("Best validation EER (%)")
    axes.legend(frameon=False)
    tidy(axes)
    save_figure(figure, path)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program; `rest` is for the recipe."""
    parser = LineParser(
        prog="benchmarks/tuning.py",
        description=__doc__.splitlines()[0],
        epilog="--key value: as for train_speaker.py, for every training",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", default="hparams/conformer.yaml", help="what is trained")
    add(
        "--search",
        default="hparams/search/conformer.yaml",
        help="what is searched, and how",
    )
    add("--n_trials", type=int, help="of the study by hand")
    add("--seeds", type=int, default=3, help="how many times")
    add("--again", type=int, default=3, help="trainings of the best values, 2 or more")
    add("--share", type=float, default=3, help="tune.py gets the time divided by this")
    add("--name", default="default", help="of the studies and their folders")
    options, options.rest = parser.parse_known_args(argv)
    check_positive(options, "n_trials", "seeds", "again", "share")
    return options


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return exit_status("benchmarks/tuning.py", lambda: run(parse(argv)))


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, and shows all results."""
    _, _, overrides = parse_command_line([options.recipe, *options.rest])
    search = read_search(options.search, options.recipe, overrides, ["eer"])
    for key in overrides:
        if key in {"seed", *search.proxy}:
            raise InputError(f"--{key}: is set by the benchmark or by {options.search}")
    if options.n_trials:
        search = dataclasses.replace(search, n_trials=options.n_trials)
    folder = FOLDER / options.name
    settings = {
        "recipe": config.texts(options.recipe, overrides),
        "search": Path(options.search).read_text(encoding="utf-8"),
        "n_trials": search.n_trials,
        "share": options.share,
        "again": options.again,
    }
    overrides["manifest_folder"] = str(folder / MANIFESTS)
    corpus = config.plain_values(options.recipe, overrides)
    noted = prepare_noted(folder, settings, corpus)
    once(folder / SETTINGS, lambda: noted)
    results = {}
    for seed in range(1, options.seeds + 1):
        results[seed] = compare(seed, folder, search, options)
        own = again(options, search, search.defaults, folder / "again_own")
        for name, result in zip(("hand", "tune"), results[seed], strict=True):
            found, place = result["best_params"], folder / f"again_{name}_{seed}"
            result["again"] = (
                own
                if found == search.defaults
                else again(options, search, found, place)
            )
        text = table(results, own)
        print(f"\n{text}\n")
        picture(results, folder / "tuning.png")
        with replacing(folder / "tuning.md") as file:
            file.write(f"{text}\n")
    print(f"table    {folder / 'tuning.md'}\npicture  {folder / 'tuning.png'}")


def compare(
    seed: int, folder: Path, search: Search, options: argparse.Namespace
) -> tuple[dict, dict]:
    """The results of `by_hand` and `by_tune` for a seed."""
    place = folder / f"by_hand_{seed}"
    hand = once(place / "result.json", lambda: by_hand(place, search, options, seed))
    # By CPU time, not by elapsed time: the machine may have had other work.
    minutes = hand["cpu_seconds"] / 60 / torch.get_num_threads() / options.share
    tuned = once(
        folder / f"by_tune_{seed}.json", lambda: by_tune(options, seed, minutes)
    )
    return hand, tuned


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
