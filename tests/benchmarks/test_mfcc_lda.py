"""Linear discriminants, against what they are by definition."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

from benchmarks.mfcc_lda import discriminants, embed
from local_modules.metrics import verification_rates
from local_modules.scoring import score_trials
from local_modules.trials import draw_trials

SPEAKERS = [f"speaker{n}" for n in range(6) for _ in range(40)]
LABELS = np.repeat(np.arange(6), 40)


@pytest.fixture(scope="module")
def statistics():
    """Six speakers that differ in three of eight features, which are all mixed."""
    rng = np.random.default_rng(0)
    means = np.zeros((6, 8))
    means[:, :3] = 8 * rng.normal(size=(6, 3))
    mixed = (means[LABELS] + rng.normal(size=(240, 8))) @ rng.normal(size=(8, 8))
    return torch.from_numpy(mixed.astype(np.float32))


def apply(statistics, weight, bias):
    return statistics @ weight.T + bias


def test_the_layer_does_what_scikit_learn_does(statistics):
    found = apply(statistics, *discriminants(statistics, SPEAKERS))
    lda = LinearDiscriminantAnalysis(n_components=4)
    expected = lda.fit_transform(statistics.double(), LABELS)
    np.testing.assert_allclose(found[:, :4], expected, atol=1e-3)


def test_speakers_are_round_and_the_first_axes_part_them(statistics):
    found = apply(statistics, *discriminants(statistics, SPEAKERS)).double().numpy()
    assert found.shape == (240, 5)  # one less than the speakers
    means = found.reshape(6, 40, 5).mean(axis=1)
    rest = found - means[LABELS]
    np.testing.assert_allclose(rest.T @ rest / 240, np.eye(5), atol=1e-3)
    spread = means.std(axis=0)
    assert (np.diff(spread) < 0).all()
    assert spread[2] > 5 * spread[3]  # three features tell them apart


def test_two_speakers_are_parted_along_fishers_direction(statistics):
    rows = statistics[:80].double().numpy()
    weight, _ = discriminants(statistics[:80], SPEAKERS[:80])
    a, b = rows[:40], rows[40:]
    within = np.cov(a.T) + np.cov(b.T)
    fisher = np.linalg.solve(within, a.mean(axis=0) - b.mean(axis=0))
    cosine = F.cosine_similarity(weight[0].double(), torch.from_numpy(fisher), dim=0)
    assert abs(cosine.item()) == pytest.approx(1, abs=1e-4)


def test_units_and_offsets_of_the_features_do_not_matter(statistics):
    factors = torch.logspace(-2, 2, 8)
    other = statistics * factors + 5 * factors
    one = F.normalize(apply(statistics, *discriminants(statistics, SPEAKERS)))
    two = F.normalize(apply(other, *discriminants(other, SPEAKERS)))
    torch.testing.assert_close(two @ two.T, one @ one.T, atol=2e-3, rtol=0)


def test_discriminants_do_better_than_what_they_are_made_of(statistics):
    names = [str(n) for n in range(240)]
    trials = draw_trials(dict(zip(names, SPEAKERS, strict=True)), seed=0)
    raw = dict(zip(names, statistics, strict=True))
    before = verification_rates(*score_trials(raw, trials))
    weight, bias = discriminants(statistics, SPEAKERS)
    after = verification_rates(*score_trials(embed(raw, weight[:3], bias[:3]), trials))
    assert after["eer"] < before["eer"] / 2
    assert after["min_dcf"] < before["min_dcf"]
    assert after["n_target"] == after["n_nontarget"] == 6 * 40 * 39 / 2
