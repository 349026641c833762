"""Calibration, on scores whose true ratios are known."""

import json

import numpy as np
import pytest

from local_modules.errors import InputError
from local_modules.evaluation.calibration import (
    Calibration,
    fit_calibration,
    quality_helps,
)
from local_modules.metrics import act_dcf, cllr, equal_error_rate, min_cllr, min_dcf


def gaussians(n, seed, separation=4.0):
    """Ratios of Gaussians with means of ± separation / 2 and variance `separation`:
    they are their own log-likelihood ratios."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    means = np.where(labels, separation / 2, -separation / 2)
    return rng.normal(means, np.sqrt(separation)), labels


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (0.05, 0.4), (7.0, -30.0)])
def test_the_true_ratios_come_back(p_target, scale, shift):
    llr, labels = gaussians(100_000, seed=1)
    calibration = fit_calibration(
        {"score": scale * llr + shift}, labels, p_target=p_target, penalty=1e-7
    )
    found = calibration({"score": scale * llr + shift})
    assert np.abs(found - llr).mean() < 0.12


def test_the_share_of_target_trials_does_not_matter():
    llr, labels = gaussians(60_000, seed=2)
    kept = ~labels | (np.arange(len(labels)) % 10 == 0)
    all_of_them = fit_calibration({"score": llr}, labels)
    few_targets = fit_calibration({"score": llr[kept]}, labels[kept])
    assert few_targets.weights["score"] == pytest.approx(
        all_of_them.weights["score"], rel=0.1
    )
    assert few_targets.offset == pytest.approx(all_of_them.offset, abs=0.15)


def test_the_ratios_of_both_kinds_of_trials_are_kept():
    """As densities: near those of the Gaussians that the ratios were drawn from, and
    each with an area of one."""
    llr, labels = gaussians(100_000, seed=6)
    kept = fit_calibration({"score": llr}, labels, penalty=1e-7).densities
    edges = np.array(kept["edges"])
    centres = (edges[1:] + edges[:-1]) / 2
    for name, mean in (("target", 2.0), ("nontarget", -2.0)):
        assert np.sum(kept[name] * np.diff(edges)) == pytest.approx(1)
        expected = np.exp(-((centres - mean) ** 2) / 8) / np.sqrt(8 * np.pi)
        np.testing.assert_allclose(kept[name], expected, atol=0.012)


def test_other_trials_are_calibrated_too():
    llr, labels = gaussians(20_000, seed=3)
    calibration = fit_calibration({"score": 0.1 * llr + 0.3}, labels)
    llr, labels = gaussians(20_000, seed=4)
    found = calibration({"score": 0.1 * llr + 0.3})
    pair = found[labels], found[~labels]
    assert cllr(*pair) < min_cllr(*pair) + 0.02
    assert act_dcf(*pair, 0.05) < min_dcf(*pair, 0.05)[0] + 0.05
    raw = 0.1 * llr[labels] + 0.3, 0.1 * llr[~labels] + 0.3
    assert equal_error_rate(*raw)[0] == pytest.approx(equal_error_rate(*pair)[0])


def test_quality_moves_the_ratio_where_it_says_something():
    """A recording's quality shifts its scores; what says nothing gets no weight."""
    llr, labels = gaussians(50_000, seed=5)
    rng = np.random.default_rng(6)
    quality, nothing = rng.normal(0, 2, (2, len(llr)))
    measures = {"score": llr + quality, "quality": quality, "nothing": nothing}
    with_it = fit_calibration(measures, labels)
    assert with_it.weights["quality"] == pytest.approx(
        -with_it.weights["score"], rel=0.05
    )
    assert abs(with_it.weights["nothing"]) < 0.05
    without = fit_calibration({"score": llr + quality}, labels)
    better, worse = (
        equal_error_rate(ratios[labels], ratios[~labels])[0]
        for ratios in (with_it(measures), without(measures))
    )
    assert better < worse - 0.02


def test_a_quality_beyond_those_seen_counts_as_the_nearest():
    llr, labels = gaussians(2000, seed=5)
    quality = np.random.default_rng(6).uniform(-1, 1, len(llr))
    calibration = fit_calibration({"score": llr + quality}, labels, {"q": quality})
    edges = np.array([quality.min(), quality.max()])
    beyond = {"score": np.zeros(2), "q": edges * 100}
    at_the_edge = calibration({"score": np.zeros(2), "q": edges})
    np.testing.assert_array_equal(calibration(beyond), at_the_edge)
    assert np.ptp(at_the_edge) > 1
    far = calibration({"score": np.array([-100.0, 100.0]), "q": np.zeros(2)})
    assert np.ptp(far) == pytest.approx(200 * calibration.weights["score"])


# Means of equal numbers are not always that number: of the logarithm of 3, 2 000 times.
@pytest.mark.parametrize("constant", [0.0, 3.0, np.log(3.0), -1e6 / 3])
@pytest.mark.parametrize("n", [100, 2000, 7001])
def test_perfect_separation_and_a_constant_measure_stay_finite(constant, n):
    scores = np.r_[np.linspace(0, 0.3, n - 50), np.linspace(0.6, 1, 50)]
    measures = {"score": scores, "constant": np.full(n, constant)}
    calibration = fit_calibration(measures, scores > 0.5)
    ratios = calibration(measures)
    assert np.isfinite(ratios).all()
    assert (ratios[scores > 0.5] > ratios[scores < 0.5].max()).all()
    assert calibration.weights["constant"] == 0.0


@pytest.mark.parametrize(
    "measures, labels, message",
    [
        ({"score": np.zeros(3)}, np.ones(3, bool), "only one kind"),
        ({"score": np.zeros(3)}, np.array([True, False]), "3 rows for 2 labels"),
        ({"score": np.array([0.0, np.nan])}, np.array([True, False]), "not finite"),
    ],
)
def test_bad_trials_are_refused(measures, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(measures, labels)


def test_it_is_kept_in_a_file(tmp_path):
    calibration = fit_calibration(
        {"score": np.array([0.1, 0.4, 0.3, 0.6])}, np.array([False, False, True, True])
    )
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration
    old = '{"weights": {"score": 1.5}, "offset": 0.125}'  # without the densities
    (tmp_path / "old.json").write_text(old)
    loaded = Calibration.load(tmp_path / "old.json")
    assert loaded == Calibration({"score": 1.5}, 0.125)
    bins = {"edges": [0, 1], "target": [1], "nontarget": [1]}
    wrong = [("weights", 1), ("weights", {"a": "b"}), ("offset", "c"), ("offset", None)]
    wrong += [("offset", np.nan), ("weights", {"a": np.inf}), ("offset", 10**400)]
    wrong += [("ranges", {"score": [0, np.nan]}), ("ranges", {"other": ["a", "b"]})]
    wrong += [("densities", bins | {"target": [np.nan]}), ("densities", {"edges": []})]
    wrong += [("densities", bins | {"target": [1, 2]}), ("densities", [1, 2, 3])]
    mistaken = [
        json.dumps({"weights": {"score": 1.5}, "offset": 0.0} | {key: value})
        for key, value in wrong
    ]
    for text in ("", "[]", '{"weights": {}}', '{"other": 1}', *mistaken):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="bad.json: is not a calibration"):
            Calibration.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "n_speakers, strength, helps", [(60, 2.0, True), (60, 0.0, False), (3, 2.0, False)]
)
def test_quality_counts_where_it_helps_with_other_speakers(n_speakers, strength, helps):
    """Quality that shifts scores is of use, noise is not, and of three speakers none
    can be left out."""
    rng = np.random.default_rng(7)
    speakers = rng.integers(0, n_speakers, (2, 4000))
    speakers[1, :2000] = speakers[0, :2000]
    labels = speakers[0] == speakers[1]
    llr = rng.normal(np.where(labels, 2.0, -2.0), 2.0)
    quality, *nothing = rng.normal(0, 1, (6, len(llr)))
    scores = {"score": llr + strength * quality}
    qualities = {f"nothing{i}": values for i, values in enumerate(nothing)}
    qualities["quality"] = quality
    assert quality_helps(scores, qualities, labels, *speakers) is helps


def test_two_scores_are_fused():
    """Two independent measurements of the same truth: their ratios add up."""
    rng = np.random.default_rng(8)
    labels = rng.random(50_000) < 0.3
    one, other = (rng.normal(np.where(labels, 2.0, -2.0), 2.0) for _ in range(2))
    calibration = fit_calibration({"a": one, "b": 0.1 * other + 5}, labels)
    found = calibration({"a": one, "b": 0.1 * other + 5})
    assert np.abs(found - one - other).mean() < 0.15


def test_the_usual_prior_is_the_one_of_rare_targets():
    """It matters where no straight line is right at all priors."""
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.3
    scores = {"score": rng.normal(np.where(labels, 2, -2), np.where(labels, 3, 1))}
    usual = fit_calibration(scores, labels)
    assert usual.weights == fit_calibration(scores, labels, p_target=0.05).weights
    assert usual.weights != fit_calibration(scores, labels, p_target=0.5).weights


def test_quality_that_only_names_the_speakers_is_of_no_help():
    """It fits those that are seen, and says nothing of the others."""
    rng = np.random.default_rng(3)
    speakers = rng.integers(0, 16, (2, 6000))
    speakers[1, :2000] = speakers[0, :2000]
    labels = speakers[0] == speakers[1]
    ease = 2 * rng.normal(size=16)
    scores = rng.normal(np.where(labels, 2 + ease[speakers[0]], -2), 1.5)
    marks = rng.normal(size=(6, 16))
    qualities = {
        f"mark {n}": mark[speakers[0]] + mark[speakers[1]]
        for n, mark in enumerate(marks)
    }
    assert not quality_helps({"score": scores}, qualities, labels, *speakers)
