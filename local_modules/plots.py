"""Plots of a training and of its scores, as PNG files.

Drawn with Matplotlib's objects, not with pyplot, which keeps every figure until it is
closed. Colours are those of Okabe and Ito (2008), which the colour-blind can tell
apart. Files are replaced atomically.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from local_modules.files import replacing
from local_modules.metrics import (
    cllr,
    equal_error_rate,
    error_rates,
    far_frr,
    min_cllr,
    min_dcf,
    optimal_llrs,
)

BLUE, VERMILLION = "#0072B2", "#D55E00"
COLOURS = (BLUE, VERMILLION, "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":")
TEXT_GREY, GRID_GREY, SHADE_GREY = "#666666", "#DDDDDD", "#EEEEEE"
DPI = 120
WIDE_LABEL = 40  # characters; two such labels are wider than a plot

DET_TICKS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
WIDE_DET_TICKS = np.array([0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 0.999])

# By file name: key of an epoch's row, factor, title, precision, unit.
PANELS = {
    "loss": ("train_loss", 1, "Training loss", ".3f", ""),
    "accuracy": ("train_accuracy", 100, "Training accuracy", ".2f", " %"),
    "learning_rate": ("learning_rate", 1, "Learning rate", ".3g", ""),
    "eer": ("valid_eer", 100, "Validation EER", ".2f", " %"),
}


def plot_training(
    epochs: Sequence[Mapping[str, float]], best_epoch: int, folder: str | os.PathLike
) -> None:
    """Writes `loss.png`, `accuracy.png`, `learning_rate.png` and `eer.png`.

    Arguments
    ---------
    epochs : sequence of mapping of str to float
        One mapping per epoch, in order, with `epoch` (from 1), `train_loss`,
        `train_accuracy` and `valid_eer` (fractions), `learning_rate` and `margin` (the
        one in force).
    best_epoch : int
        Number of the epoch with the lowest equal error rate.
    folder : str or os.PathLike
        Where to write; must exist.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> epoch = {"epoch": 1, "train_loss": 9.5, "train_accuracy": 0.125}
    >>> epoch |= {"learning_rate": 1e-3, "margin": 0.2, "valid_eer": 0.25}
    >>> plot_training([epoch], best_epoch=1, folder=folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['accuracy.png', 'eer.png', 'learning_rate.png', 'loss.png']
    """
    for name in PANELS:
        figure = _figure(7, 4)
        _draw_panel(figure.subplots(), name, epochs, best_epoch)
        save_figure(figure, Path(folder) / f"{name}.png")


def plot_overview(
    epochs: Sequence[Mapping[str, float]], best_epoch: int, path: str | os.PathLike
) -> None:
    """Writes the four plots of `plot_training` as one.

    Arguments
    ---------
    epochs, best_epoch
        See `plot_training`.
    path : str or os.PathLike
        The PNG to write.
    """
    figure = _figure(10, 6.4)
    for axes, name in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        _draw_panel(axes, name, epochs, best_epoch)
    save_figure(figure, path)


def plot_scores(
    target: np.ndarray,
    nontarget: np.ndarray,
    threshold: float,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Writes the histograms of target and non-target scores.

    Arguments
    ---------
    target : numpy.ndarray
        Scores of the target trials, [n_target].
    nontarget : numpy.ndarray
        Scores of the non-target trials, [n_nontarget].
    threshold : float
        Trials that score at or above it are accepted.
    path : str or os.PathLike
        The PNG to write.
    title : str
        Title of the plot.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate([target, nontarget]), bins=60)
    far, frr = far_frr(target, nontarget, threshold)
    for scores, colour, label in (
        (nontarget, VERMILLION, f"non-target, {100 * far:.2f} % accepted"),
        (target, BLUE, f"target, {100 * frr:.2f} % rejected"),
    ):
        density, _ = np.histogram(scores, edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(density, edges, color=colour, linewidth=1.5, label=label)
    axes.axvline(
        threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}"
    )
    axes.set_title(title, loc="left")
    axes.set_xlabel("Score")
    axes.set_ylabel("Density")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    tidy(axes)
    save_figure(figure, path)


def plot_det(curves: Mapping[str, tuple], path: str | os.PathLike) -> None:
    """Writes detection error trade-off curves (Martin et al., Eurospeech 1997).

    On axes warped by the normal deviate, Gaussian scores give straight lines. A dot
    marks the equal error rate, a cross the minimum detection cost at a prior of 1 %.

    Arguments
    ---------
    curves : mapping of str to tuple
        `(target, nontarget)` scores of each system, by its name.
    path : str or os.PathLike
        The PNG to write.

    Raises
    ------
    ValueError
        Empty, non-finite or not one-dimensional scores.
    """
    figure = _figure(6, 6.6)
    axes = figure.subplots()
    ticks, lowest = DET_TICKS, DET_TICKS[0]
    for index, (name, scores) in enumerate(curves.items()):
        _, far, frr = error_rates(*scores)
        eer, _ = equal_error_rate(*scores)
        if eer > DET_TICKS[-1]:
            ticks = WIDE_DET_TICKS
        # Rates of 0 and 1 lie at infinity; half the lowest rate is outside the frame.
        deviates = norm.ppf(np.clip([far, frr], lowest / 2, 1 - lowest / 2))
        (line,) = axes.plot(
            *deviates, label=f"{name}: EER {100 * eer:.2f} %", **line_look(index)
        )
        crossing = norm.ppf(np.clip(eer, lowest, 1 - lowest))
        axes.scatter(
            crossing, crossing, s=45, color=line.get_color(), zorder=3, clip_on=False
        )
        _, threshold = min_dcf(*scores)
        least = norm.ppf(np.clip(far_frr(*scores, threshold), lowest, 1 - lowest))
        axes.scatter(*least, marker="x", color=line.get_color(), zorder=3)
    axes.axline((0, 0), slope=1, color=TEXT_GREY, linewidth=0.8, linestyle=":")
    labels = [f"{100 * tick:g}" for tick in ticks]
    axes.set_xticks(norm.ppf(ticks), labels)
    axes.set_yticks(norm.ppf(ticks), labels)
    axes.set_xlim(*norm.ppf(ticks[[0, -1]]))
    axes.set_ylim(*norm.ppf(ticks[[0, -1]]))
    axes.set_aspect("equal")
    axes.set_title("Detection error trade-off", loc="left")
    axes.set_xlabel("False acceptance rate (%)")
    axes.set_ylabel("False rejection rate (%)")
    # Beneath the axes: inside, a curve can run through any corner.
    longest = max(len(line.get_label()) for line in axes.get_lines())
    n_columns = 1 if longest > WIDE_LABEL else 2
    figure.legend(loc="outside lower center", ncols=n_columns, frameon=False)
    tidy(axes)
    save_figure(figure, path)


def plot_calibration(
    target: np.ndarray, nontarget: np.ndarray, path: str | os.PathLike, title: str
) -> None:
    """Plots log-likelihood ratios against the optimal ones for the same order of the
    trials.

    Arguments
    ---------
    target, nontarget : numpy.ndarray
        Log-likelihood ratios of the trials, [n_target] and [n_nontarget].
    path : str or os.PathLike
        The PNG to write.
    title : str
        Title of the plot.
    """
    figure = _figure(6, 6)
    axes = figure.subplots()
    starts, right = optimal_llrs(target, nontarget)
    both = np.concatenate([target, nontarget])
    limit = float(np.abs(np.quantile(both, [0.005, 0.995])).max())
    ends = np.r_[starts[1:], both.max()]
    axes.plot(
        np.stack([starts, ends], axis=1).ravel(),
        np.repeat(np.clip(right, -2 * limit, 2 * limit), 2),
        color=BLUE,
        label=f"Cllr {cllr(target, nontarget):.3f}, "
        f"at best {min_cllr(target, nontarget):.3f}",
    )
    axes.axline((0, 0), slope=1, color=TEXT_GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_aspect("equal")
    axes.set_title(title, loc="left")
    axes.set_xlabel("Log-likelihood ratio given")
    axes.set_ylabel("Optimal log-likelihood ratio")
    axes.legend(frameon=False)
    tidy(axes)
    save_figure(figure, path)


def _draw_panel(axes: Axes, name: str, epochs: Sequence, best_epoch: int) -> None:
    """Draws one value per epoch, with that of the best epoch in the title."""
    key, factor, title, precision, unit = PANELS[name]
    if name == "loss":
        _draw_margin(axes, epochs)
    numbers = [epoch["epoch"] for epoch in epochs]
    values = [factor * epoch[key] for epoch in epochs]
    best = values[numbers.index(best_epoch)]
    axes.plot(numbers, values, color=BLUE, marker=".")
    axes.axvline(best_epoch, color=VERMILLION, linewidth=0.8, linestyle="--")
    axes.scatter(
        best_epoch, best, s=45, color=VERMILLION, marker="D", zorder=3, clip_on=False
    )
    axes.set_title(title, loc="left")
    axes.set_title(
        f"best epoch {best_epoch}: {best:{precision}}{unit}",
        loc="right",
        color=VERMILLION,
        fontsize="medium",
    )
    axes.set_xlabel("Epoch")
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:g}" + unit)
    tidy(axes)


def _draw_margin(axes: Axes, epochs: Sequence) -> None:
    """Draws the margin in force behind the curve: a rising margin lifts the loss."""
    margins = [epoch["margin"] for epoch in epochs]
    if not any(margins):
        return
    numbers = np.array([epoch["epoch"] for epoch in epochs])
    behind = axes.twinx()
    behind.stairs(
        margins, np.r_[numbers - 0.5, numbers[-1] + 0.5], fill=True, color=SHADE_GREY
    )
    behind.set_ylim(0, 1.6 * max(margins))
    behind.set_ylabel("Margin (shaded)", color=TEXT_GREY)
    behind.tick_params(colors=TEXT_GREY)
    behind.spines[:].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout)


def tidy(axes: Axes) -> None:
    """Adds a light grid and removes the box."""
    axes.grid(color=GRID_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def line_look(index: int) -> dict[str, str]:
    """Colour and style of a line among others; the first 24 differ.

    Example
    -------
    >>> line_look(0), line_look(6)
    ({'color': '#0072B2', 'linestyle': '-'}, {'color': '#0072B2', 'linestyle': ':'})
    """
    n_rounds, n = divmod(index, len(COLOURS))
    style = LINE_STYLES[(index + n_rounds) % len(LINE_STYLES)]
    return {"color": COLOURS[n], "linestyle": style}


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG, replacing an existing one."""
    with replacing(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=DPI)
