"""Pictures of a study: Optuna's own, and the curves of all trials overlaid."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import optuna
import optuna.visualization as interactive
import optuna.visualization.matplotlib as static
import plotly.graph_objects as go
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from local_modules.files import replacing
from local_modules.plots import BLUE, VERMILLION, save_figure, tidy
from local_modules.tuning.objectives import OBJECTIVES
from local_modules.tuning.outcome import best_trial
from local_modules.tuning.study import EPOCHS, live_trials

OTHERS_GREY = "#BBBBBB"
N_IMPORTANT = 4  # parameters that contour and slice show

# Title of each of Optuna's plots, and how to read it.
OPTUNA_S = {
    "pareto_front": (
        "Trade-offs",
        "No trial beats a marked one in every objective: choose one of the marked "
        "ones.",
    ),
    "optimization_history": (
        "The search",
        "Each dot is a trial, the line the best so far: once it is flat, more trials "
        "bring little.",
    ),
    "param_importances": (
        "Importance of the parameters",
        "How much each parameter sets the best tenth of the trials apart (PED-ANOVA); "
        "one with a small share can stay at its default.",
    ),
    "slice": (
        "One parameter at a time",
        "Every trial by its value of a parameter: lower is better; later trials are "
        "darker.",
    ),
    "contour": (
        "Two parameters at a time",
        "Where two parameters are good together; dots are trials, the rest is "
        "interpolated.",
    ),
    "parallel_coordinate": (
        "All parameters",
        "Each line is a trial through all its parameters; dark lines are good.",
    ),
    "intermediate_values": (
        "Trials during training",
        "The {label} at each tenth of a trial's budget; lines that end early were "
        "pruned.",
    ),
    "timeline": ("Timeline", "A bar for each trial, coloured by how it ended."),
}

# Name, title, key of an epoch's row, factor, axis, whether that is logarithmic.
OVERLAYS = (
    ("eer", "Equal error rate of all trials", "valid_eer", 100, "valid EER (%)", True),
    ("accuracy", "Training accuracy", "train_accuracy", 100, "accuracy (%)", False),
    ("loss", "Training loss", "train_loss", 1, "loss", False),
    ("learning_rate", "Learning rate", "learning_rate", 1, "learning rate", False),
)
BUDGET = "share of a trial's budget (%)"


@dataclass(frozen=True)
class Picture:
    """One picture of a study.

    Arguments
    ---------
    name : str
        Name of its files.
    title : str
        Heading above it.
    how_to_read : str
        One sentence on how to read it.
    figure : plotly.graph_objects.Figure
        The interactive form.
    draw : callable
        Draws the static form and returns it.
    """

    name: str
    title: str
    how_to_read: str
    figure: go.Figure
    draw: Callable[[], Figure]


def view(study: optuna.Study, objectives: Sequence[str]) -> optuna.Study:
    """A copy of a study for display: live trials only, rates in percent."""
    factors = [OBJECTIVES[name].factor for name in objectives]
    shown = optuna.create_study(directions=study.directions)
    for trial in live_trials(study).values():
        trial = copy.deepcopy(trial)
        if trial.values is not None:
            trial.values = [v * f for v, f in zip(trial.values, factors, strict=True)]
        for step, value in trial.intermediate_values.items():
            trial.intermediate_values[step] = value * factors[0]
        shown.add_trial(trial)
    return shown


def make_pictures(study: optuna.Study, objectives: Sequence[str]) -> list[Picture]:
    """The pictures that a study has enough trials for.

    Arguments
    ---------
    study : optuna.Study
        With at least one complete trial.
    objectives : sequence of str
        Names of its objectives.

    Returns
    -------
    list of Picture
    """
    shown = view(study, objectives)
    label = OBJECTIVES[objectives[0]].axis
    target = None if len(objectives) == 1 else lambda trial: trial.values[0]
    options = {"target": target, "target_name": label}
    complete = shown.get_trials(states=(TrialState.COMPLETE,))
    important = _important(shown, target) if len(complete) > 3 else []
    wanted = {}  # options of Optuna's plots, by their names, in the order of the page
    if len(objectives) in (2, 3):  # what Optuna can draw
        axes = [OBJECTIVES[name].axis for name in objectives]
        wanted["pareto_front"] = {"target_names": axes}
    wanted["optimization_history"] = options
    if important:
        wanted["param_importances"] = options
        wanted["slice"] = {"params": important[:N_IMPORTANT], **options}
        if len(important) > 1:
            wanted["contour"] = {"params": important[:2], **options}
        wanted["parallel_coordinate"] = {"params": important, **options}
    if len(objectives) == 1:
        wanted["intermediate_values"] = {}
    wanted["timeline"] = {}
    found = [_optuna_s(name, label, shown, **own) for name, own in wanted.items()]
    return found + [_overlay(study, *row) for row in OVERLAYS]


def _important(shown: optuna.Study, target) -> list[str]:
    """Parameters by importance; none if the trials don't show it."""
    try:
        with _quiet():
            return list(optuna.importance.get_param_importances(shown, target=target))
    except (ValueError, RuntimeError):
        return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignores Optuna's warnings, such as that some of its pictures are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _optuna_s(name, label, shown, **options) -> Picture:
    """One of Optuna's pictures, which has both forms under the same name."""
    title, how_to_read = OPTUNA_S[name]

    def draw():
        plotter = getattr(static, f"plot_{name}")
        with _quiet(), matplotlib.rc_context({"backend": "agg"}):
            axes = plotter(shown, **options)
            figure = getattr(axes, "flat", [axes])[0].figure
            figure.suptitle("")
            matplotlib.pyplot.close(figure)
        _tidy_optuna_s(name, figure, options)
        return figure

    with _quiet():
        figure = getattr(interactive, f"plot_{name}")(shown, **options)
    figure.update_layout(title=None)
    if name == "intermediate_values":
        figure.update_layout(showlegend=False)  # lines show it on hover
    return Picture(name, title, how_to_read.format(label=label), figure, draw)


def _tidy_optuna_s(name: str, figure: Figure, options: dict) -> None:
    """Makes a static picture of Optuna's legible with many trials and parameters."""
    if name == "parallel_coordinate":
        figure.set_size_inches(1.5 * len(options["params"]), 5.5)
    legend = figure.axes[0].get_legend()
    if name == "intermediate_values" and legend is not None:
        legend.remove()  # it has an entry for each trial
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _tick(axis)


def _tick(axis: Axis) -> None:
    """Gives a logarithmic axis legible ticks."""
    low, high = axis.get_view_interval()
    # Narrow ranges may hold no power of ten.
    subs = (1, 2, 5) if high < 30 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _overlay(study, name, title, key, factor, axis, is_log) -> Picture:
    """A curve of every trial over its budget, because lengths of epochs differ; the
    best trial is in front."""
    best = best_trial(study)
    curves = []  # of (front, colour, width, label, shares, values, is_pruned)
    for number, trial in live_trials(study).items():
        rows = trial.user_attrs.get(EPOCHS, [])
        shares = [100 * row["budget_used"] for row in rows]
        values = [factor * row[key] for row in rows]
        if trial.number == best.number:
            look = (2, BLUE, 3.0, f"best, trial {number}")
        elif number == 0:
            look = (1, VERMILLION, 2.0, "the recipe's own, trial 0")
        else:
            look = (0, OTHERS_GREY, 0.8, f"trial {number}")
        is_pruned = trial.state == TrialState.PRUNED
        curves.append((*look, shares, values, is_pruned))
    curves.sort(key=lambda curve: curve[0])
    # A logarithmic axis cannot show an error rate of 0.
    lowest = min((v for *_, values, _ in curves for v in values), default=0)
    is_log = is_log and lowest > 0

    figure = go.Figure()
    for front, colour, width, label, shares, values, is_dashed in curves:
        line = {"color": colour, "width": width, "dash": "dot" if is_dashed else None}
        figure.add_scatter(
            x=shares,
            y=values,
            name=label,
            line=line,
            mode="lines+markers" if front else "lines",
            showlegend=front > 0,
        )
    figure.update_layout(xaxis_title=BUDGET, yaxis_title=axis)
    figure.update_yaxes(type="log" if is_log else "linear")
    figure.update_layout(legend={"x": 1, "y": 1, "xanchor": "right"})

    def draw():
        drawn = Figure(figsize=(7, 4), layout="constrained")
        axes = drawn.subplots()
        for front, colour, width, label, shares, values, is_dashed in curves:
            axes.plot(
                shares,
                values,
                color=colour,
                linewidth=width,
                linestyle=":" if is_dashed else "-",
                marker="o" if front or len(shares) == 1 else None,
                markersize=3,
                label=label if front else None,
            )
        axes.set_title(title, loc="left")
        axes.set_xlabel(BUDGET)
        axes.set_ylabel(axis)
        axes.legend(frameon=False)
        tidy(axes)
        if is_log:
            axes.set_yscale("log")
            _tick(axes.yaxis)
        return drawn

    how_to_read = (
        "Blue is the best trial, orange the recipe's own values, grey the others; "
        "dotted lines were pruned."
    )
    return Picture(name, title, how_to_read, figure, draw)


def write_pictures(found: list[Picture], folder: Path) -> None:
    """Writes each picture as PNG and as an HTML page; the pages share a copy of
    plotly."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in found:
        with matplotlib.rc_context({"savefig.bbox": "tight"}):
            save_figure(picture.draw(), folder / f"{picture.name}.png")
        with replacing(folder / f"{picture.name}.html") as file:
            file.write(picture.figure.to_html(include_plotlyjs="directory"))
    with replacing(folder / "plotly.min.js") as file:
        file.write(get_plotlyjs())
