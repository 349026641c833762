"""Figures of the page, as SVG: sharp on a phone, and with text in the browser's fonts,
which have more scripts than Matplotlib's."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from local_modules.plots import (
    BLUE,
    COLOURS,
    GRID_GREY,
    TEXT_GREY,
    VERMILLION,
    tidy,
)

# Set once, not for each figure: several threads draw.
matplotlib.rcParams["svg.fonttype"] = "none"

WIDTH = 4.6  # inches; in points, about the width of a phone
COLUMNS = 600  # of a spectrogram or a waveform, at most
FLOOR_DB = -70.0  # of a spectrogram, relative to its maximum
MAX_LABELS = 40  # people on the map; more names would overlap
MAX_LETTERS = 16  # of a name on the map


def draw_scale(
    value: float,
    threshold: float,
    label: str,
    densities: Mapping[str, Sequence[float]] | None = None,
) -> bytes:
    """Draws where a score lies on its scale.

    Arguments
    ---------
    value : float
        The score.
    threshold : float
        Scores from here on mean the same person.
    label : str
        Label of the scale.
    densities : mapping | None
        Of a `Calibration`, drawn in the background.

    Returns
    -------
    bytes
        SVG.
    """
    figure = _figure(2.4)
    axes = figure.subplots()
    shown = [value, threshold]
    if densities is not None:
        edges = densities["edges"]
        shown += [edges[0], edges[-1]]
        for name, colour, meaning in (
            ("nontarget", VERMILLION, "two people"),
            ("target", BLUE, "one person"),
        ):
            axes.stairs(densities[name], edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(densities[name], edges, color=colour, label=meaning)
    margin = 0.05 * (max(shown) - min(shown)) or 1.0
    axes.set_xlim(min(shown) - margin, max(shown) + margin)
    axes.set_ylim(bottom=0)
    axes.axvline(threshold, color=TEXT_GREY, linestyle=":", label="decision")
    colour = BLUE if value >= threshold else VERMILLION
    axes.axvline(value, color="black", linewidth=2.5, label="these two")
    axes.plot(
        *(value, 1),
        marker="v",
        color=colour,
        markeredgecolor="black",
        markersize=11,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )
    axes.set_yticks([])
    axes.set_xlabel(label)
    tidy(axes)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    return _svg(figure)


def draw_recording(samples: np.ndarray, sample_rate: int) -> bytes:
    """Draws the waveform and the spectrogram of a recording.

    Arguments
    ---------
    samples : numpy.ndarray
        float32, [time].
    sample_rate : int
        In Hz.

    Returns
    -------
    bytes
        SVG.
    """
    seconds = len(samples) / sample_rate
    figure = _figure(3.0)
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 3])
    hop = max(1, -(-len(samples) // COLUMNS))
    padded = np.pad(samples, (0, -len(samples) % hop), mode="edge").reshape(-1, hop)
    above.fill_between(
        *(np.arange(len(padded)) * hop / sample_rate, padded.min(1), padded.max(1)),
        color=BLUE,
        linewidth=0.5,
    )
    limit = max(0.05, 1.05 * float(np.abs(samples).max()))
    above.set_ylim(-limit, limit)
    above.set_yticks([])
    tidy(above)
    above.spines["left"].set_visible(False)

    n_fft = round(0.025 * sample_rate)
    spectrum = torch.stft(
        torch.from_numpy(samples),
        n_fft,
        hop_length=max(hop, n_fft // 4),
        window=torch.hann_window(n_fft),
        pad_mode="constant",
        return_complex=True,
    ).abs()
    levels = 20 * torch.log10(spectrum / spectrum.max() + 1e-8)
    below.imshow(
        levels.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, sample_rate / 2000),
        vmin=FLOOR_DB,
        vmax=0,
        cmap="magma",
        interpolation="none",
    )
    below.set_xlabel("Seconds")
    below.set_ylabel("kHz")
    return _svg(figure)


def draw_map(
    names: Sequence[str], vectors: np.ndarray, last: np.ndarray | None = None
) -> bytes:
    """Draws a map of voices: their projection onto the plane of largest variance.

    Arguments
    ---------
    names : sequence of str
        The speaker of each recording.
    vectors : numpy.ndarray
        One per recording, [recordings, emb_dim]; at least three, counting `last`.
    last : numpy.ndarray | None
        The recording to mark, [emb_dim].

    Returns
    -------
    bytes
        SVG.
    """
    everything = vectors if last is None else np.vstack([vectors, last])
    plane = PCA(2).fit(everything)
    points = plane.transform(vectors)
    figure = _figure(4.0)
    axes = figure.subplots()
    people, owners = np.unique(names, return_inverse=True)
    colours = [COLOURS[number % len(COLOURS)] for number in owners]
    axes.scatter(*points.T, color=colours, s=40, alpha=0.8, linewidths=0)
    for number, person in enumerate(people if len(people) <= MAX_LABELS else ()):
        own = points[owners == number]
        axes.annotate(
            person if len(person) <= MAX_LETTERS else f"{person[:MAX_LETTERS]}…",
            (own[:, 0].mean(), own[:, 1].max()),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            parse_math=False,  # a name may hold dollars
        )
    if last is not None:
        (here,) = plane.transform(last[None])
        axes.scatter(*here, marker="*", s=220, color="black", zorder=3)
        axes.annotate(
            "last recording",
            here,
            xytext=(0, -20),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    share = 100 * plane.explained_variance_ratio_.sum()
    axes.set_xlabel(f"{share:.0f} % of the variance of these recordings is shown")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.15)
    axes.set_aspect("equal", adjustable="datalim")  # so that distances can be compared
    axes.spines[:].set_color(GRID_GREY)
    return _svg(figure)


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
