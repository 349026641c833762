"""`report.html` of a study: one file that needs no network."""

from collections.abc import Mapping
from pathlib import Path

import optuna
from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from local_modules.files import replacing
from local_modules.templates import page_template
from local_modules.tuning.figures import Picture
from local_modules.tuning.objectives import objective_text
from local_modules.tuning.outcome import (
    best_trial,
    latest_value,
    seconds_taken,
    spread_text,
    value_text,
)
from local_modules.tuning.search import Search, distribution_text
from local_modules.tuning.study import SLOT, failure_reason, live_trials


def write_report(
    study: optuna.Study,
    search: Search,
    recipe: str,
    command: str,
    pictures: list[Picture],
    retrained: Mapping | None,
    path: Path,
) -> None:
    """Writes the page.

    Arguments
    ---------
    study : optuna.Study
        With at least one complete trial.
    search : Search
        What is searched.
    recipe : str
        The YAML file that the search began with.
    command : str
        Command that trains the best recipe.
    pictures : list of Picture
        In the order of the page.
    retrained : mapping | None
        What `retrain` returns.
    path : Path
        The file to write; `best.yaml` is beside it.
    """
    live = live_trials(study)
    best = best_trial(study)
    text = page_template("study.html").render(
        study={
            "name": f"Study {study.study_name}",
            "n_trials": len(live),
            "summary": _summary(live, recipe, search),
            "recipe": str(path.with_name("best.yaml")),
            "command": command,
        },
        cards=_cards(live, best, search),
        confidence=_confidence(live, retrained),
        parameters=[
            {
                "key": key,
                "best": value_text(best.params[key]),
                "default": value_text(search.defaults[key]),
                "range": distribution_text(distribution),
            }
            for key, distribution in search.space.items()
        ],
        retrained=retrained and _retrained(retrained, live, best, search),
        pictures=[
            {
                "name": picture.name,
                "title": picture.title,
                "how_to_read": picture.how_to_read,
                # A "</script>" in a string would end the script.
                "json": Markup(picture.figure.to_json().replace("</", "<\\/")),
            }
            for picture in pictures
        ],
        columns=["trial", "state", *search.objectives, *search.space, "min", "why"],
        rows=[_row(*item, best, search) for item in live.items()],
        plotly_js=Markup(get_plotlyjs()),
    )
    with replacing(path) as file:
        file.write(text)


def _summary(live: Mapping[int, FrozenTrial], recipe: str, search: Search) -> str:
    states = [trial.state for trial in live.values()]
    counts = [
        f"{states.count(state)} {word}"
        for state, word in (
            (TrialState.COMPLETE, "complete"),
            (TrialState.PRUNED, "pruned"),
            (TrialState.FAIL, "failed"),
            (TrialState.RUNNING, "under way"),
            (TrialState.WAITING, "waiting"),
        )
        if state in states
    ]
    seconds = sum(seconds_taken(trial) or 0.0 for trial in live.values())
    proxy = ", ".join(f"{key} {value}" for key, value in search.proxy.items())
    return (
        f"{len(live)} trials of {recipe}: {', '.join(counts)}; {seconds / 60:.0f} "
        f"minutes of trials. Settings of trials: {proxy or 'as in full training'}."
    )


def _cards(live, best: FrozenTrial, search: Search) -> list[dict]:
    name = search.objectives[0]
    cards = [
        {
            "kind": "best",
            "title": "Best on valid",
            "value": objective_text(name, best.values[0]),
            "text": f"trial {best.user_attrs[SLOT]}",
        }
    ]
    first = live[0]
    if first.state == TrialState.COMPLETE:
        gain = _percent_gained(first.values[0], best.values[0])
        cards += [
            {
                "kind": "default",
                "title": "The recipe's own values",
                "value": objective_text(name, first.values[0]),
                "text": "trial 0",
            },
            {
                "kind": "gain",
                "title": "Gained",
                "value": f"{gain} %",
                "text": "relative to trial 0",
            },
        ]
    return cards


def _percent_gained(own: float, other: float) -> int:
    return round(100 * (1 - other / own)) if own else 0


def _confidence(live, retrained) -> str:
    n_complete = sum(trial.state == TrialState.COMPLETE for trial in live.values())
    text = (
        f"The best of {n_complete} complete trials was chosen on the validation "
        "speakers, so its result there is optimistic."
    )
    if retrained:
        return f"{text} How much of the gain remains on test is shown below."
    return (
        f"{text} To see how much of the gain is real, repeat the command with "
        "--retrain: it trains the best and the recipe's own values in full, with "
        "several seeds, and tests both."
    )


def _retrained(retrained: Mapping, live, best: FrozenTrial, search: Search) -> dict:
    rows = [
        {
            "name": f"{name} (trial {row['trial']})",
            "seeds": len(row["seeds"]),
            "valid": spread_text(row["valid_eer"], 100, " %"),
            "test": spread_text(row["test_eer"], 100, " %"),
            "min_dcf": spread_text(row["test_min_dcf"], 1, ""),
        }
        for name, row in retrained.items()
    ]
    if "best" not in retrained:
        return {"rows": rows, "text": "No trial was better than the recipe's own."}
    gains, changes = {}, []
    for split in ("valid", "test"):
        own, other = (
            sum(retrained[name][f"{split}_eer"]) for name in ("defaults", "best")
        )
        gains[split] = gain = _percent_gained(own, other)
        verb = "raise" if gain < 0 else "lower"
        change = f"they {verb} it by {abs(gain)} %" if own else "it was 0 % before"
        changes.append(f"on {split} {change}")
    text = f"Trained in full, its values change the EER: {', '.join(changes)}."
    first = live[0]  # one that was pruned has a value too
    if search.objectives[0] == "eer" and first.state == TrialState.COMPLETE:
        searched = _percent_gained(first.values[0], best.values[0])
        text = (
            f"In the search, the best trial gained {searched} % over the recipe's own "
            f"values. {text}"
        )
        if gains["test"] <= 0 < searched and sum(retrained["defaults"]["test_eer"]):
            text += " On test, nothing of the gain remains."
        elif 0 < gains["test"] < searched:
            text += f" On test, {gains['test']} of the {searched} % remain."
    return {"rows": rows, "text": text}


def _row(number: int, trial: FrozenTrial, best: FrozenTrial, search: Search) -> dict:
    if trial.state == TrialState.COMPLETE:
        values = trial.values
    else:
        values = [latest_value(trial, name) for name in search.objectives]
    seconds = seconds_taken(trial)
    failed = trial.state == TrialState.FAIL
    cells = [
        _cell(number),
        _cell(trial.state.name.lower()),
        *(
            _cell(value, value is not None and objective_text(name, value))
            for name, value in zip(search.objectives, values, strict=True)
        ),
        *(_cell(trial.params.get(key)) for key in search.space),
        _cell(seconds, seconds is not None and f"{seconds / 60:.1f}"),
        _cell(failure_reason(trial) if failed else ""),
    ]
    kind = "best" if trial.number == best.number else "" if number else "default"
    return {"kind": kind, "cells": cells}


def _cell(value, text=None) -> dict:
    if value is None:
        return {"value": "", "text": ""}
    return {"value": value, "text": text or value_text(value)}
