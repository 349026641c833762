"""What is shown of a study while it runs."""

import contextlib
import math
import time
from collections.abc import Iterator

import optuna
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from local_modules.errors import RunError
from local_modules.tuning import outcome
from local_modules.tuning.job import Job
from local_modules.tuning.objectives import objective_text
from local_modules.tuning.search import distribution_text
from local_modules.tuning.study import (
    EPOCHS,
    SLOT,
    failure_reason,
    has_ended,
    live_trials,
)


def first_screen(job: Job, n_workers: int, n_done: int) -> str:
    """What will run, how long it takes, and how to stop and continue."""
    search = job.search
    minutes = search.proxy.get("train_time_limit_minutes")
    n_left = max(0, job.n_trials - n_done)
    if minutes is None:
        takes = "unknown before the first trials, whose lines give their minutes"
    else:
        in_all = math.ceil(n_left / n_workers) * minutes
        if job.deadline is not None:  # trials started by then run to their end
            in_all = min(in_all, (job.deadline - time.time()) / 60 + minutes)
        takes = f"up to {in_all:.0f} min of training"
        takes += ", plus reading the corpus and validating"
    ranges = "\n             ".join(
        f"{key}: {distribution_text(space)}" for key, space in search.space.items()
    )
    return "\n".join(
        [
            f"Study      {job.name}: {job.n_trials} trials of {job.recipe}"
            + (f", {n_done} of them done" if n_done else ""),
            f"searched   {ranges}",
            f"a trial    {outcome.params_text(search.proxy) or 'the full length'}; "
            "the first has the recipe's own values",
            f"judged by  {', '.join(search.objectives)} on valid; test is not read",
            f"takes      {takes}, with {n_workers} at a time",
            f"results    {job.folder}",
            "Ctrl-C stops; the same command continues.",
            "",
        ]
    )


def watch(
    job: Job, study: optuna.Study, running: Iterator[dict[int, FrozenTrial]]
) -> None:
    """Runs the study with a line for each trial and a progress bar."""
    shown = {number for number, trial in live_trials(study).items() if has_ended(trial)}
    with (
        contextlib.closing(running),
        tqdm(
            total=job.n_trials,
            initial=len(shown),
            unit="trial",
            smoothing=0,
            disable=None,  # if the output is not a terminal; lines are still written
        ) as progress,
    ):
        try:
            for live in running:
                for number, trial in live.items():
                    if not has_ended(trial) or number in shown:
                        continue
                    shown.add(number)
                    progress.write(outcome.trial_line(trial, job.search.objectives))
                    progress.update()
                check_first(live)
                progress.set_postfix_str(_standing(job, study, live), refresh=False)
                progress.refresh()
        except RunError:
            check_first(live_trials(study))  # if it failed, that is the cause
            raise


def check_first(live: dict[int, FrozenTrial]) -> None:
    """Ends a study whose first trial has failed, also if it is started again: the
    others have nothing to be compared with."""
    first = live.get(0)
    if first is not None and first.state == TrialState.FAIL and has_ended(first):
        raise RunError(
            "the first trial, with the recipe's own values, failed: "
            f"{failure_reason(first)}; once that is fixed, start a new study, "
            "--study NAME"
        )


def _standing(job: Job, study: optuna.Study, live: dict) -> str:
    """The best trial so far and the running ones, in a few words."""
    words = []
    best = outcome.best_trial(study)
    if best is not None:
        value = objective_text(job.search.objectives[0], best.values[0])
        words.append(f"best {value} (trial {best.user_attrs[SLOT]})")
    for number, trial in live.items():
        if trial.state == TrialState.RUNNING:
            n_epochs = len(trial.user_attrs.get(EPOCHS, ()))
            words.append(f"trial {number} after epoch {n_epochs}")
    return "; ".join(words)
