"""Error rates, against brute force over all thresholds and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from local_modules.metrics import equal_error_rate, error_rates, min_dcf


def draw(seed):
    """Scores of many shapes: few or many trials, with and without ties."""
    rng = np.random.default_rng(seed)
    n_target, n_nontarget = rng.integers(1, 60, 2)
    target = rng.normal(rng.uniform(-1, 3), 1.0, n_target)
    nontarget = rng.normal(0.0, rng.uniform(0.2, 2.0), n_nontarget)
    decimals = rng.integers(0, 4)
    return target.round(decimals), nontarget.round(decimals)


def brute_force_rates(target, nontarget):
    """FAR and FRR by counting, at every score and above them all."""
    thresholds = [*sorted({*target, *nontarget}), math.inf]
    far = [sum(s >= t for s in nontarget) / len(nontarget) for t in thresholds]
    frr = [sum(s < t for s in target) / len(target) for t in thresholds]
    return thresholds, far, frr


def crossing(far, frr):
    """Where the line through the points (FAR, FRR) meets FAR = FRR, by bisection."""
    far, frr = np.asarray(far), np.asarray(frr)
    along = np.arange(len(far))
    low, high = 0.0, len(far) - 1.0
    for _ in range(80):
        middle = (low + high) / 2
        if np.interp(middle, along, far) > np.interp(middle, along, frr):
            low = middle
        else:
            high = middle
    return np.interp(high, along, far)


@pytest.mark.parametrize("seed", range(100))
def test_against_brute_force(seed):
    target, nontarget = draw(seed)
    thresholds, far, frr = brute_force_rates(target, nontarget)
    for ours, expected in zip(
        error_rates(target, nontarget), (thresholds, far, frr), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-12)

    eer, threshold = equal_error_rate(target, nontarget)
    assert eer == pytest.approx(crossing(far, frr), abs=1e-9)
    gaps = [abs(a - b) for a, b in zip(far, frr, strict=True)]
    reached = gaps[thresholds.index(threshold)]
    assert reached == pytest.approx(min(gaps), abs=1e-12)
    assert math.isfinite(threshold)

    for p_target, c_miss, c_fa in [(0.01, 1, 1), (0.5, 1, 1), (0.05, 10, 1)]:
        costs = [
            (c_miss * p_target * miss + c_fa * (1 - p_target) * accept)
            / min(c_miss * p_target, c_fa * (1 - p_target))
            for miss, accept in zip(frr, far, strict=True)
        ]
        cost, threshold = min_dcf(target, nontarget, p_target, c_miss, c_fa)
        assert cost == pytest.approx(min(costs))
        assert costs[thresholds.index(threshold)] == pytest.approx(min(costs))
        assert 0 <= cost <= 1


@pytest.mark.parametrize("seed", range(30))
def test_against_scikit_learn(seed):
    target, nontarget = draw(seed)
    labels = np.r_[np.ones(len(target)), np.zeros(len(nontarget))]
    far, tpr, _ = roc_curve(labels, np.r_[target, nontarget], drop_intermediate=False)
    eer, _ = equal_error_rate(target, nontarget)
    assert eer == pytest.approx(crossing(far[::-1], 1 - tpr[::-1]), abs=1e-9)


@pytest.mark.parametrize(
    "target, nontarget, expected, threshold",
    [
        ([3.0, 4.0], [1.0, 2.0], 0.0, 3.0),  # perfect
        ([1.0, 2.0], [3.0, 4.0], 1.0, 3.0),  # perfectly wrong
        ([1.0, 3.0], [0.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0], [0.0, 0.5, 1.5], 1 / 3, 1.5),
        ([2.0, 2.0], [2.0], 0.5, 2.0),  # all equal: the line from (1, 0) to (0, 1)
        # A run of ties from (FAR 1, FRR 0) to (0, 1/2) meets the diagonal at 1/3.
        ([1.0, 2.0], [1.0], 1 / 3, 2.0),
        # From (1/2, 0) down to (0, 0): no target is rejected where FAR reaches 0.
        ([2.0], [1.0, 0.0], 0.0, 2.0),
        ([0.0], [0.0, -1.0, -2.0], 0.25, 0.0),
    ],
)
def test_equal_error_rate_by_hand(target, nontarget, expected, threshold):
    eer, at = equal_error_rate(target, nontarget)
    assert eer == pytest.approx(expected)
    assert at == threshold


@pytest.mark.parametrize(
    "target, nontarget, expected, threshold",
    [
        ([3.0, 4.0], [1.0, 2.0], 0.0, 3.0),
        ([1.0, 2.0], [3.0, 4.0], 1.0, math.inf),  # best to reject all
        ([2.0], [2.0], 1.0, math.inf),
        # One of four targets lies below all non-targets.
        ([0.0, 5.0, 6.0, 7.0], [1.0, 2.0], 0.25, 5.0),
        # Rejecting two of four beats accepting one of four at a prior of 1 %.
        ([1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 0.0, 3.0], 0.5, 4.0),
    ],
)
def test_min_dcf_by_hand(target, nontarget, expected, threshold):
    cost, at = min_dcf(target, nontarget)
    assert cost == pytest.approx(expected)
    assert at == threshold


def test_min_dcf_weighs_prior_and_costs():
    target, nontarget = [1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 0.0, 3.0]
    # Accept from 1: FAR 1/4, FRR 0, so 0.9 / 4 over a default of 0.1.
    assert min_dcf(target, nontarget, 0.9)[0] == pytest.approx(0.25)
    assert min_dcf(target, nontarget, 0.5, c_fa=3.0)[0] == pytest.approx(0.5)
    assert min_dcf(target, nontarget, 0.5, c_miss=3.0)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "rise", [lambda s: 3 * s - 7, np.exp, np.arctan, lambda s: s**3 + s]
)
def test_rising_maps_of_the_scores_change_no_rate(seed, rise):
    target, nontarget = draw(seed)
    eer, threshold = equal_error_rate(target, nontarget)
    mapped, at = equal_error_rate(rise(target), rise(nontarget))
    assert mapped == pytest.approx(eer)
    assert at == pytest.approx(rise(threshold))
    assert min_dcf(rise(target), rise(nontarget))[0] == pytest.approx(
        min_dcf(target, nontarget)[0]
    )


@pytest.mark.parametrize("seed", range(20))
def test_swapped_classes_and_signs_mirror(seed):
    target, nontarget = draw(seed)
    eer, _ = equal_error_rate(target, nontarget)
    mirrored, _ = equal_error_rate(-nontarget, -target)
    assert mirrored == pytest.approx(eer)
    assert min_dcf(-nontarget, -target, 0.9)[0] == pytest.approx(
        min_dcf(target, nontarget, 0.1)[0]
    )


@pytest.mark.parametrize("seed", range(20))
def test_swapped_classes_complement(seed):
    target, nontarget = draw(seed)
    eer, _ = equal_error_rate(target, nontarget)
    assert equal_error_rate(nontarget, target)[0] == pytest.approx(1 - eer)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_repetition_of_the_trials_do_not_matter(seed):
    target, nontarget = draw(seed)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(np.tile(target, 3)), rng.permutation(nontarget)
    assert equal_error_rate(*shuffled) == pytest.approx(
        equal_error_rate(target, nontarget)
    )


def test_tensors_arrays_and_lists_are_alike():
    target, nontarget = draw(4)
    expected = equal_error_rate(target, nontarget), min_dcf(target, nontarget)
    for convert in (torch.tensor, np.float64, list):
        converted = convert(target), convert(nontarget)
        assert (equal_error_rate(*converted), min_dcf(*converted)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_of_any_precision_with_gradients(dtype):
    target = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    nontarget = torch.tensor([0.0, 1.5], dtype=dtype)
    assert equal_error_rate(target, nontarget) == (0.5, 1.5)


def test_double_tensors_keep_their_precision():
    close = torch.tensor([1.0 + 1e-12], dtype=torch.float64)
    assert equal_error_rate(close, torch.tensor([1.0], dtype=torch.float64))[0] == 0.0


@pytest.mark.parametrize("metric", [error_rates, equal_error_rate, min_dcf])
@pytest.mark.parametrize(
    "bad, message",
    [
        ([], "is empty"),
        ([0.1, math.nan], "NaN"),
        ([math.inf], "infinite"),
        ([[0.1, 0.2]], "2 dimensions"),
        (0.5, "0 dimensions"),
        (torch.empty(0), "is empty"),
    ],
)
def test_bad_scores_are_refused_by_name(metric, bad, message):
    with pytest.raises(ValueError, match=f"nontarget_scores .*{message}"):
        metric([0.5], bad)
    with pytest.raises(ValueError, match=f"^target_scores .*{message}"):
        metric(bad, [0.5])


@pytest.mark.parametrize("p_target", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_prior_must_be_a_probability(p_target):
    with pytest.raises(ValueError, match="p_target"):
        min_dcf([1.0], [0.0], p_target)


def test_a_million_trials_of_known_error():
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(2.0, 1.0, 200_000), rng.normal(0.0, 1.0, 800_000)
    eer, threshold = equal_error_rate(target, nontarget)
    # Gaussians two deviations apart cross half way: the normal tail beyond 1.
    assert eer == pytest.approx(math.erfc(1 / math.sqrt(2)) / 2, abs=2e-3)
    assert threshold == pytest.approx(1.0, abs=1e-2)
    assert 0 < min_dcf(target, nontarget)[0] < 1
