"""Plots: that the files are whole and say what the numbers say."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from local_modules import plots
from local_modules.metrics import equal_error_rate

TRAINING_FILES = ["accuracy.png", "eer.png", "learning_rate.png", "loss.png"]


def history(n_epochs, margin=0.2):
    return [
        {
            "epoch": number,
            "train_loss": 10.0 / number,
            "train_accuracy": 1 - 0.9 / number,
            "learning_rate": 1e-3 / number,
            "margin": margin * (number > 1),
            "valid_eer": 0.03 + abs(number - 3) / 100,
            "valid_min_dcf": 0.5,
            "seconds": 2.0,
        }
        for number in range(1, n_epochs + 1)
    ]


@pytest.fixture
def scores():
    rng = np.random.default_rng(1)
    return rng.normal(2.0, 1.0, 200), rng.normal(0.0, 1.0, 300)


def png_size(path):
    """Width and height; fails unless the file is a PNG from its first chunk to its
    last."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n_epochs", [1, 2, 40])
def test_training(tmp_path, n_epochs):
    plots.plot_training(history(n_epochs), min(n_epochs, 3), tmp_path)
    assert names(tmp_path) == TRAINING_FILES
    for name in TRAINING_FILES:
        assert png_size(tmp_path / name) == (840, 480)


def test_training_curves_hold_the_numbers_in_percent(tmp_path, figures):
    epochs = history(9)
    plots.plot_training(epochs, 3, tmp_path)
    drawn = {f.axes[0].get_title(loc="left"): f.axes[0] for f in figures}
    for title, key, factor, label in [
        ("Training loss", "train_loss", 1, "best epoch 3: 3.333"),
        ("Training accuracy", "train_accuracy", 100, "best epoch 3: 70.00 %"),
        ("Learning rate", "learning_rate", 1, "best epoch 3: 0.000333"),
        ("Validation EER", "valid_eer", 100, "best epoch 3: 3.00 %"),
    ]:
        axes = drawn.pop(title)
        x, y = axes.lines[0].get_data()
        np.testing.assert_array_equal(x, range(1, 10))
        np.testing.assert_allclose(y, [factor * epoch[key] for epoch in epochs])
        assert axes.get_title(loc="right") == label
        (marked,) = axes.collections[-1].get_offsets()
        np.testing.assert_allclose(marked, [3, y[2]])
    assert not drawn


def test_margin_is_shaded_behind_the_loss_alone(tmp_path, figures):
    plots.plot_training(history(4), 3, tmp_path)
    loss, *others = figures
    front, behind = loss.axes
    assert behind.get_zorder() < front.get_zorder()
    np.testing.assert_allclose(behind.patches[0].get_data().values, [0, 0.2, 0.2, 0.2])
    assert [len(figure.axes) for figure in others] == [1, 1, 1]


def test_without_margin_there_is_no_margin_axis(tmp_path, figures):
    plots.plot_training(history(4, margin=0.0), 3, tmp_path)
    assert [len(figure.axes) for figure in figures] == [1, 1, 1, 1]


@pytest.mark.parametrize("n_epochs", [1, 12])
def test_overview_has_the_four_panels(tmp_path, figures, n_epochs):
    plots.plot_overview(history(n_epochs), 1, tmp_path / "overview.png")
    assert names(tmp_path) == ["overview.png"]
    assert png_size(tmp_path / "overview.png") == (1200, 768)
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert [title for title in titles if title] == [
        "Training loss",
        "Training accuracy",
        "Learning rate",
        "Validation EER",
    ]


def test_scores(tmp_path, figures, scores):
    target, nontarget = scores
    plots.plot_scores(target, nontarget, 1.0, tmp_path / "scores.png", "Test")
    png_size(tmp_path / "scores.png")
    (axes,) = figures[0].axes
    for steps in axes.patches:
        values, edges, _ = steps.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [
        f"non-target, {100 * np.mean(nontarget >= 1):.2f} % accepted",
        f"target, {100 * np.mean(target < 1):.2f} % rejected",
        "threshold 1.000",
    ]


def test_scores_that_are_all_equal(tmp_path):
    path = tmp_path / "scores.png"
    plots.plot_scores(np.ones(3), np.ones(4), np.inf, path, "Equal")
    png_size(path)


def test_det(tmp_path, figures, scores):
    target, nontarget = scores
    eer, _ = equal_error_rate(target, nontarget)
    curves = {"a": scores, "b": (target + 1, nontarget)}
    plots.plot_det(curves, tmp_path / "det.png")
    png_size(tmp_path / "det.png")
    (axes,) = figures[0].axes
    assert axes.lines[0].get_label() == f"a: EER {100 * eer:.2f} %"
    far, frr = axes.lines[0].get_data()
    assert (np.diff(far) <= 0).all() and (np.diff(frr) >= 0).all()
    (marked,) = axes.collections[0].get_offsets()
    # The mark is where the curve crosses the diagonal.
    nearest = np.abs(far - frr).argmin()
    np.testing.assert_allclose(marked, [far[nearest], frr[nearest]], atol=0.05)
    assert [tick.get_text() for tick in axes.get_xticklabels()][::8] == ["0.1", "40"]


def test_the_cross_of_a_det_is_where_the_detection_cost_is_least(
    tmp_path, figures, scores
):
    """Where one in a hundred trials is a target trial."""
    target, nontarget = scores
    plots.plot_det({"a": scores}, tmp_path / "det.png")
    (axes,) = figures[0].axes
    (found,) = axes.collections[1].get_offsets()
    thresholds = np.append(np.concatenate(scores), np.inf)
    far = np.array([np.mean(nontarget >= threshold) for threshold in thresholds])
    frr = np.array([np.mean(target < threshold) for threshold in thresholds])
    costs = 0.01 * frr + 0.99 * far
    least = np.isclose(costs, costs.min(), rtol=0, atol=1e-12)
    # What is below the lowest tick is drawn there.
    places = norm.ppf(np.clip([far[least], frr[least]], 0.001, 0.999)).T
    assert np.abs(places - found).max(axis=1).min() < 1e-6
    assert (places[:, 1] - places[:, 0] > 0.5).all()  # FRR is far above FAR


def test_calibration_shows_what_would_have_been_right_over_what_was_given(
    tmp_path, figures
):
    """Of the trials with a ratio of -1 a quarter are target trials, of those with one
    of 2 three quarters."""
    target = np.repeat([-1.0, 2.0], [10, 30])
    nontarget = np.repeat([-1.0, 2.0], [30, 10])
    plots.plot_calibration(
        target, nontarget, tmp_path / "calibration.png", "Calibration"
    )
    png_size(tmp_path / "calibration.png")
    (axes,) = figures[0].axes
    given, right = axes.lines[0].get_data()
    np.testing.assert_allclose(given, [-1, 2, 2, 2])
    np.testing.assert_allclose(right, np.log([1 / 3, 1 / 3, 3, 3]))
    assert axes.get_xlabel() == "Log-likelihood ratio given"
    assert axes.get_xlim() == axes.get_ylim() == (-2.0, 2.0)
    of_targets = 0.25 * np.log2(1 + np.exp(1)) + 0.75 * np.log2(1 + np.exp(-2))
    of_others = 0.75 * np.log2(1 + np.exp(-1)) + 0.25 * np.log2(1 + np.exp(2))
    best = 0.25 * np.log2(1 + 3) + 0.75 * np.log2(1 + 1 / 3)  # of either kind
    cost = (of_targets + of_others) / 2
    assert axes.lines[0].get_label() == f"Cllr {cost:.3f}, at best {best:.3f}"


@pytest.mark.parametrize(
    "target, nontarget", [([1.0], [0.0]), ([0.0], [1.0]), ([1.0, 1.0], [1.0])]
)
def test_det_of_perfect_hopeless_and_equal_scores(tmp_path, figures, target, nontarget):
    plots.plot_det({"extreme": (target, nontarget)}, tmp_path / "det.png")
    (axes,) = figures[0].axes
    (marked,) = axes.collections[0].get_offsets()
    low, high = axes.get_xlim()
    assert low <= marked[0] <= high


def test_curves_of_a_det_can_be_told_apart(tmp_path, figures, scores):
    plots.plot_det({f"{n}": scores for n in range(15)}, tmp_path / "det.png")
    (figure,) = figures
    lines = [line for line in figure.axes[0].get_lines() if ": EER" in line.get_label()]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == 15
    assert len({colour for colour, _ in looks}) == 6


def test_det_draws_more_curves_than_colours(tmp_path, scores):
    curves = {str(number): scores for number in range(8)}
    plots.plot_det(curves, tmp_path / "det.png")
    png_size(tmp_path / "det.png")


def test_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch, scores):
    path = tmp_path / "det.png"
    path.write_bytes(b"old")

    def fail(figure, file, **kwargs):
        file.write(b"half of a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.plot_det({"a": scores}, path)
    assert names(tmp_path) == ["det.png"]
    assert path.read_bytes() == b"old"


def test_pyplot_is_never_imported(tmp_path):
    program = """
import sys
import numpy as np
from local_modules import plots
plots.plot_scores(np.ones(2), np.zeros(2), 1.0, sys.argv[1], "")
assert "matplotlib.pyplot" not in sys.modules
"""
    path = tmp_path / "scores.png"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    png_size(path)
