"""Confidence intervals, against repeated experiments and loops."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from local_modules.evaluation.confidence import (
    bootstrap,
    interval,
    p_value,
    speakers_of,
    unseen_error_rate,
)
from local_modules.metrics import cllr, equal_error_rate, min_dcf


def experiment(rng, n_speakers=24, n_utterances=4):
    """Trials between all utterances of drawn speakers, each harder or easier."""
    speaker = np.repeat(np.arange(n_speakers), n_utterances)
    ease = rng.normal(0, 1.0, n_speakers)
    first, second = np.triu_indices(len(speaker), 1)
    enrol, test = speaker[first], speaker[second]
    labels = enrol == test
    scores = rng.normal(0, 1.0, len(labels))
    scores += np.where(labels, 2.5 + ease[enrol], 0.5 * (ease[enrol] + ease[test]))
    return scores, labels, enrol, test


PRIORS = 0.01, 0.05


def eers(scores, labels, enrol, test, n_resamples):
    return bootstrap(scores, labels, (enrol, test), n_resamples, PRIORS)["eer"]


def rates(scores, labels):
    return equal_error_rate(scores[labels], scores[~labels])[0]


def test_speakers_drawn_once_each_are_the_trials_themselves(monkeypatch):
    scores, labels, enrol, test = experiment(np.random.default_rng(0))
    once = SimpleNamespace(choice=lambda speakers, n: speakers)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: once)
    found = bootstrap(scores, labels, (enrol, test), 1, PRIORS, are_llrs=True)
    pair = scores[labels], scores[~labels]
    assert found["eer"][0] == pytest.approx(equal_error_rate(*pair)[0])
    assert found["min_dcf_0.01"][0] == pytest.approx(min_dcf(*pair)[0])
    assert found["min_dcf_0.05"][0] == pytest.approx(min_dcf(*pair, 0.05)[0])
    assert found["cllr"][0] == pytest.approx(cllr(*pair))


def test_a_resample_is_the_trials_of_the_speakers_drawn():
    """Against writing each trial down as often as its speakers were drawn."""
    rng = np.random.default_rng(1)
    scores, labels, enrol, test = experiment(rng, n_speakers=6)
    scores = scores.round(1)  # with ties
    found = eers(scores, labels, enrol, test, 20)
    draws = np.random.default_rng(0)
    for eer in found:
        drawn = draws.choice(np.arange(6), 6)
        rows = [
            row
            for row in range(len(labels))
            for _ in range(
                (drawn == enrol[row]).sum()
                * (1 if labels[row] else (drawn == test[row]).sum())
            )
        ]
        assert eer == pytest.approx(rates(scores[rows], labels[rows]))


def test_the_interval_is_as_wide_as_repeated_experiments_are():
    rng = np.random.default_rng(2)
    truth = [rates(*experiment(rng)[:2]) for _ in range(200)]
    expected = np.mean(truth)
    hits, widths = 0, []
    for _ in range(40):
        scores, labels, enrol, test = experiment(rng)
        low, high = interval(eers(scores, labels, enrol, test, 100))
        hits += low <= expected <= high
        widths.append(high - low)
    assert hits >= 33  # of 40; 38 are expected
    spread = np.quantile(truth, 0.975) - np.quantile(truth, 0.025)
    assert 0.7 * spread < np.mean(widths) < 1.5 * spread


def test_trials_drawn_by_themselves_would_be_too_sure():
    rng = np.random.default_rng(3)
    scores, labels, enrol, test = experiment(rng)
    low, high = interval(eers(scores, labels, enrol, test, 200))
    naive = []
    for _ in range(200):
        rows = rng.integers(len(labels), size=len(labels))
        naive.append(rates(scores[rows], labels[rows]))
    assert high - low > 1.5 * (np.quantile(naive, 0.975) - np.quantile(naive, 0.025))


def test_the_same_draws_pair_two_systems():
    scores, labels, enrol, test = experiment(np.random.default_rng(4))
    trials = labels, enrol, test, 300
    one = eers(scores, *trials)
    assert np.array_equal(one, eers(scores, *trials))
    other = eers(scores + 0.5 * labels, *trials)
    assert p_value(one, other) < 0.02
    assert p_value(other, one) == p_value(one, other)
    assert p_value(one, one) == 1.0
    noise = np.random.default_rng(5).normal(0, 0.05, len(scores))
    assert p_value(one, eers(scores + noise, *trials)) > 0.05


def test_an_interval_holds_95_of_100():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_p_counts_both_sides_and_the_sample():
    worse, better = np.ones(99), np.zeros(99)
    assert p_value(worse, better) == p_value(better, worse) == 2 / 100
    worse[:4] = -1.0  # in four resamples it is the other way round
    assert p_value(worse, better) == 2 * 5 / 100


def test_a_resample_without_target_trials_is_left_out():
    labels = np.array([True, False, False])
    enrol, test = np.array([0, 0, 1]), np.array([0, 1, 2])
    found = eers(np.array([2.0, 1.0, 0.0]), labels, enrol, test, 200)
    assert np.isnan(found).any() and not np.isnan(found).all()
    assert interval(found) == (0.0, 0.0)


@pytest.mark.parametrize("n_speakers", [1, 8, 60])
def test_no_error_of_a_few_speakers_is_no_promise(n_speakers):
    """Clopper and Pearson's interval, 5 % above it and none below."""
    exact = binomtest(0, n_speakers).proportion_ci(0.9, method="exact").high
    assert unseen_error_rate(n_speakers) == pytest.approx(exact)
    assert exact < 3 / n_speakers


def test_speakers_are_what_target_trials_connect():
    enrol = ["a1", "a2", "b1", "a1", "c1"]
    test = ["a2", "a3", "b2", "b1", "a3"]
    labels = np.array([True, True, True, False, False])
    first, second = speakers_of(labels, enrol, test)
    assert first[0] == first[1] == first[3] == second[0] == second[1] == second[4]
    assert first[2] == second[2] == second[3]
    assert len({first[0], first[2], first[4]}) == 3


def test_resamples_without_a_rate_count_for_neither_side():
    one = np.r_[np.ones(99), np.full(100, np.nan)]
    assert p_value(one, np.zeros(199)) == 2 / 100


def test_speakers_are_drawn_of_those_in_the_trials():
    """Whatever their numbers are: of a part of the trials, some are missing."""
    labels = np.array([1, 1, 1, 0, 0, 0], bool)
    enrol, test = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 1, 2, 0])
    scores = np.array([3.0, 2.0, 0.0, 1.0, 0.5, -1.0])
    found = [eers(scores, labels, enrol + first, test + first, 50) for first in (0, 7)]
    np.testing.assert_array_equal(*found)
