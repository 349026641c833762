"""Error rates, against brute force over all thresholds and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from local_modules.metrics import (
    act_dcf,
    bayes_threshold,
    cllr,
    convex_hull_eer,
    equal_error_rate,
    error_rates,
    far_frr,
    min_cllr,
    min_dcf,
    verification_rates,
)


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


@pytest.mark.parametrize(
    "metric",
    [error_rates, equal_error_rate, min_dcf, act_dcf, cllr, min_cllr, convex_hull_eer],
)
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
    for metric in (min_dcf, act_dcf):
        with pytest.raises(ValueError, match="p_target"):
            metric([1.0], [0.0], p_target)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["c_miss", "c_fa"])
def test_costs_must_be_above_zero(name, cost):
    for metric in (min_dcf, act_dcf):
        with pytest.raises(ValueError, match=name):
            metric([1.0], [0.0], **{name: cost})


def lower_hull(far, frr):
    """Vertices of the convex hull of an ROC, from (1, 0) to (0, 1)."""
    hull = []
    for point in zip(far, frr, strict=True):
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0) < -1e-12:
                break
            hull.pop()
        hull.append(point)
    return np.array(hull).T


@pytest.mark.parametrize("seed", range(60))
def test_convex_hull_against_brute_force(seed):
    target, nontarget = draw(seed)
    _, far, frr = brute_force_rates(target, nontarget)
    hull_far, hull_frr = lower_hull(far, frr)
    eer = convex_hull_eer(target, nontarget)
    assert eer == pytest.approx(crossing(hull_far, hull_frr), abs=1e-9)
    assert eer <= equal_error_rate(target, nontarget)[0] + 1e-12
    # Where the classes are likely as not, it is the worst of all priors' least errors.
    least = [
        min(p * miss + (1 - p) * accept for miss, accept in zip(frr, far, strict=True))
        for p in np.linspace(0.001, 0.999, 1999)
    ]
    assert eer == pytest.approx(max(least), abs=2e-3)


@pytest.mark.parametrize("seed", range(40))
def test_rates_at_a_threshold_by_counting(seed):
    target, nontarget = draw(seed)
    rng = np.random.default_rng(seed)
    for threshold in (*rng.choice(nontarget, 3), *rng.choice(target, 3), 0.123):
        far, frr = far_frr(target, nontarget, threshold)
        assert far == sum(s >= threshold for s in nontarget) / len(nontarget)
        assert frr == sum(s < threshold for s in target) / len(target)


def test_actual_cost_by_hand():
    # At a prior of 1 % the threshold is log(99) = 4.595: one of two targets is below,
    # one of four non-targets above, so 0.5 + 99 / 4.
    assert bayes_threshold(0.01) == pytest.approx(math.log(99))
    assert bayes_threshold(0.01, c_miss=10, c_fa=2) == pytest.approx(math.log(19.8))
    assert act_dcf([5.0, 4.0], [4.6, 0.0, 1.0, 2.0]) == pytest.approx(0.5 + 99 / 4)
    assert act_dcf([5.0], [-5.0]) == 0.0


@pytest.mark.parametrize("seed", range(40))
def test_no_decision_costs_less_than_the_best(seed):
    target, nontarget = draw(seed)
    for p_target in (0.01, 0.05, 0.5):
        least, _ = min_dcf(target, nontarget, p_target)
        assert act_dcf(target, nontarget, p_target) >= least - 1e-12


def test_cllr_by_hand():
    # log2(1 + 1/3) and log2(1 + 1/7), for ratios of 3 and of 1 to 7.
    expected = (math.log2(4 / 3) + math.log2(8 / 7)) / 2
    assert cllr([math.log(3)], [-math.log(7)]) == pytest.approx(expected)
    assert cllr([-1000.0], [0.0]) == pytest.approx(0.5 * 1000 / math.log(2) + 0.5)
    assert cllr([800.0], [-800.0]) == 0.0


def best_map_by_brute_force(target, nontarget):
    """The least cllr of any rising map: pooled over all ways to cut the scores into
    runs (the map's steps)."""
    scores = sorted({*target, *nontarget})
    best = math.inf
    for cuts in range(2 ** (len(scores) - 1)):
        runs, run = [], [scores[0]]
        for index, score in enumerate(scores[1:]):
            if cuts >> index & 1:
                runs.append(run)
                run = []
            run.append(score)
        runs.append(run)
        cost, before = 0.0, -math.inf
        for run in runs:
            hits = sum(score in run for score in target) / len(target)
            others = sum(score in run for score in nontarget) / len(nontarget)
            ratio = hits / others if others else math.inf
            if ratio < before:
                break
            before = ratio
            if hits:
                cost += hits * math.log2(1 + 1 / ratio) if others else 0.0
            if others:
                cost += others * math.log2(1 + ratio)
        else:
            best = min(best, cost / 2)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_min_cllr_against_every_rising_map(seed):
    rng = np.random.default_rng(seed)
    target = rng.integers(2, 9, rng.integers(1, 9)).astype(float)
    nontarget = rng.integers(0, 7, rng.integers(1, 9)).astype(float)
    expected = best_map_by_brute_force(target, nontarget)
    assert min_cllr(target, nontarget) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_min_cllr_is_the_least_and_needs_the_order_only(seed):
    target, nontarget = draw(seed)
    least = min_cllr(target, nontarget)
    assert 0 <= least <= 1 + 1e-12
    for scale, shift in ((1, 0), (3, -1), (0.5, 2)):
        assert least <= cllr(scale * target + shift, scale * nontarget + shift) + 1e-12
    assert min_cllr(np.arctan(target), np.arctan(nontarget)) == pytest.approx(least)
    # What the other class gains in sign, it loses in order.
    assert min_cllr(-nontarget, -target) == pytest.approx(least)


def test_perfectly_calibrated_ratios_leave_nothing_to_gain():
    """Gaussians of variance 2 m and means m and -m are their own ratios."""
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal((2.0, -2.0), 2.0, (100_000, 2)).T
    assert cllr(target, nontarget) == pytest.approx(
        min_cllr(target, nontarget), abs=2e-3
    )
    assert act_dcf(target, nontarget, 0.3) == pytest.approx(
        min_dcf(target, nontarget, 0.3)[0], abs=5e-3
    )


def test_single_precision_is_kept_and_agrees():
    rng = np.random.default_rng(3)
    target, nontarget = rng.normal(1, 1, 500), rng.normal(0, 1, 700)
    single = target.astype(np.float32), nontarget.astype(np.float32)
    assert error_rates(*single)[0].dtype == np.float32
    for metric in (convex_hull_eer, min_cllr, cllr):
        assert metric(*single) == pytest.approx(metric(target, nontarget), abs=1e-6)


def test_a_million_trials_of_known_error():
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(2.0, 1.0, 200_000), rng.normal(0.0, 1.0, 800_000)
    eer, threshold = equal_error_rate(target, nontarget)
    # Gaussians two deviations apart cross half way: the normal tail beyond 1.
    assert eer == pytest.approx(math.erfc(1 / math.sqrt(2)) / 2, abs=2e-3)
    assert threshold == pytest.approx(1.0, abs=1e-2)
    assert 0 < min_dcf(target, nontarget)[0] < 1


def test_what_is_written_of_a_split():
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(2, 1, 500), rng.normal(0, 1, 700)
    rates = verification_rates(target, nontarget)
    eer, threshold = equal_error_rate(target, nontarget)
    assert (rates["eer"], rates["eer_threshold"]) == (eer, threshold)
    assert rates["min_dcf"] == min_dcf(target, nontarget, p_target=0.01)[0]
    assert rates["min_dcf"] != min_dcf(target, nontarget, p_target=0.05)[0]
    assert (rates["n_target"], rates["n_nontarget"]) == (len(target), len(nontarget))
