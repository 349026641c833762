"""The results of a study: its best trial, the table of trials, the best recipe."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML

from local_modules.files import replacing
from local_modules.tuning.objectives import OBJECTIVES, objective_text
from local_modules.tuning.study import EPOCHS, SLOT, failure_reason, live_trials


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the lowest first objective, the earliest on a tie."""
    complete = [
        trial
        for trial in live_trials(study).values()
        if trial.state == TrialState.COMPLETE
    ]
    return min(complete, key=lambda trial: trial.values[0], default=None)


def spread_text(values: Sequence[float], factor: float, unit: str) -> str:
    """The mean of values and, for two or more, their standard deviation.

    Example
    -------
    >>> spread_text([0.01, 0.02, 0.03], 100, " %"), spread_text([0.5], 1, "")
    ('2.00 ± 1.00 %', '0.50')
    """
    text = f"{factor * np.mean(values):.2f}"
    if len(values) > 1:
        text += f" ± {factor * np.std(values, ddof=1):.2f}"
    return text + unit


def params_text(params: Mapping) -> str:
    """Parameters in one line.

    Example
    -------
    >>> params_text({"lr": 0.00123456, "emb_dim": 256})
    'lr 0.00123, emb_dim 256'
    """
    return ", ".join(f"{key} {value_text(value)}" for key, value in params.items())


def value_text(value) -> str:
    """A parameter's value, to three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_line(trial: FrozenTrial, objectives: tuple[str, ...]) -> str:
    """A finished trial in one line."""
    if trial.state == TrialState.COMPLETE:
        pairs = zip(objectives, trial.values, strict=True)
        what = ", ".join(objective_text(name, value) for name, value in pairs)
    elif trial.state == TrialState.PRUNED:
        value = objective_text(objectives[0], latest_value(trial, objectives[0]))
        share = round(100 * trial.user_attrs[EPOCHS][-1]["budget_used"])
        what = f"pruned: {value} after {share} % of its budget"
    else:
        what = f"failed: {failure_reason(trial)}"
    number, minutes = trial.user_attrs[SLOT], seconds_taken(trial) / 60
    return f"trial {number}: {what}; {params_text(trial.params)}; {minutes:.1f} min"


def seconds_taken(trial: FrozenTrial) -> float | None:
    """How long a trial has trained, over all its attempts. Without an epoch, the time
    of the last attempt, which is what Optuna knows; None if that has not ended."""
    if epochs := trial.user_attrs.get(EPOCHS):
        return epochs[-1]["seconds"]
    return None if trial.duration is None else trial.duration.total_seconds()


def latest_value(trial: FrozenTrial, objective: str) -> float | None:
    """An objective after the last epoch of a trial that has no value; None if it has no
    epoch, or epochs don't have that objective."""
    epochs = trial.user_attrs.get(EPOCHS, ())
    return epochs[-1].get(OBJECTIVES[objective].by_epoch) if epochs else None


def write_trial_table(
    study: optuna.Study, objectives: tuple[str, ...], path: Path
) -> None:
    """Writes the table of trials, a row for each slot.

    Arguments
    ---------
    study : optuna.Study
        The study.
    objectives : tuple of str
        Names of its objectives.
    path : Path
        The CSV file.
    """
    live = live_trials(study)
    params = list(dict.fromkeys(key for t in live.values() for key in t.params))
    metrics = ("best_epoch", "epochs", "train_seconds", "n_parameters")
    metrics = tuple(name for name in metrics if name not in objectives)
    with replacing(path) as file:
        rows = csv.writer(file)
        rows.writerow(
            ("trial", "state", *objectives, *metrics, *params, "seconds", "reason")
        )
        for number, trial in live.items():
            values = trial.values or [""] * len(objectives)
            if trial.state == TrialState.PRUNED:
                values = [latest_value(trial, objectives[0])]
            found = trial.user_attrs.get("metrics", {})
            seconds = seconds_taken(trial)
            failed = trial.state == TrialState.FAIL
            rows.writerow(
                (
                    number,
                    trial.state.name.lower(),
                    *values,
                    *(found.get(name, "") for name in metrics),
                    *(trial.params.get(name, "") for name in params),
                    "" if seconds is None else f"{seconds:.1f}",
                    failure_reason(trial) if failed else "",
                )
            )


def write_recipe(
    hparams_file: str, overrides: Mapping, output_folder: str, title: str, path: Path
) -> None:
    """Writes a complete recipe file: another one with some values replaced.

    Arguments
    ---------
    hparams_file : str
        The recipe to start from.
    overrides : mapping
        Values for its top-level keys.
    output_folder : str
        For its runs; may refer to `<seed>`.
    title : str
        First line of the file.
    path : Path
        The file to write.
    """
    yaml = YAML()
    yaml.width = 1000
    tree = yaml.load(Path(hparams_file).read_text(encoding="utf-8"))
    for key, value in overrides.items():
        tree[key] = value
    # In quotes, because a study may have any name.
    tree["output_folder"] = yaml.load(f"a: !ref {json.dumps(output_folder)}")["a"]
    with replacing(path) as file:
        file.write(f"# {title}\n")
        yaml.dump(tree, file)
