"""Error rates and costs of verification scores. A higher score means more alike.

A trial is accepted if its score is at least the threshold. The false acceptance rate
(FAR) is the share of accepted non-target trials, the false rejection rate (FRR) that of
rejected target trials. All rates are fractions. Scores are arrays or tensors of one
dimension, on any device; they are sorted in their own precision, in linear memory.
"""

import math

import numpy as np
from scipy.optimize import isotonic_regression


def _scores(scores, name: str) -> np.ndarray:
    """A one-dimensional, finite array of 32 or 64 bits from an array or a tensor."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu()
        if scores.is_floating_point() and scores.element_size() < 4:
            scores = scores.float()
        scores = scores.numpy()
    scores = np.asarray(scores)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else float)
    if scores.ndim != 1:
        raise ValueError(f"{name} has {scores.ndim} dimensions, not 1")
    if scores.size == 0:
        raise ValueError(f"{name} is empty: there are no such trials")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} holds NaN or infinite scores")
    return scores


def _both(target_scores, nontarget_scores) -> tuple[np.ndarray, np.ndarray]:
    return _scores(target_scores, "target_scores"), _scores(
        nontarget_scores, "nontarget_scores"
    )


def _check_costs(p_target: float, c_miss: float, c_fa: float) -> None:
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is {p_target}, not between 0 and 1")
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0 < cost < math.inf:
            raise ValueError(f"{name} is {cost}, not above 0")


def error_rates(
    target_scores, nontarget_scores
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FAR and FRR at every distinct threshold, by one sort.

    Arguments
    ---------
    target_scores : array or torch.Tensor
        Scores of the target trials, [n_target].
    nontarget_scores : array or torch.Tensor
        Scores of the non-target trials, [n_nontarget].

    Returns
    -------
    thresholds : numpy.ndarray
        The distinct scores in ascending order, and infinity at the end, [n].
    far, frr : numpy.ndarray
        Rates at these thresholds: FAR falls from 1 to 0, FRR rises from 0 to 1, [n].

    Raises
    ------
    ValueError
        Empty, non-finite or not one-dimensional scores.

    Example
    -------
    >>> thresholds, far, frr = error_rates([2.0, 3.0], [1.0, 2.0])
    >>> thresholds.tolist(), far.tolist(), frr.tolist()
    ([1.0, 2.0, 3.0, inf], [1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0])
    """
    target, nontarget = map(np.sort, _both(target_scores, nontarget_scores))
    # Equal scores are accepted or rejected together: one threshold for all of them.
    thresholds = _different(target, nontarget)
    far, frr = _rates_at(thresholds, target, nontarget)
    return np.r_[thresholds, np.inf], np.r_[far, 0.0], np.r_[frr, 1.0]


def _different(*runs: np.ndarray) -> np.ndarray:
    """The distinct scores of sorted arrays, in ascending order."""
    scores = np.concatenate(runs)
    scores.sort(kind="stable")  # merges sorted runs
    return scores[np.r_[True, scores[1:] != scores[:-1]]]


def _rates_at(thresholds, target, nontarget) -> tuple[np.ndarray, np.ndarray]:
    """FAR and FRR at thresholds, from sorted scores."""
    far = 1.0 - np.searchsorted(nontarget, thresholds) / len(nontarget)
    return far, np.searchsorted(target, thresholds) / len(target)


def _corners(target_scores, nontarget_scores) -> tuple[np.ndarray, ...]:
    """The corners of the ROC: thresholds at the distinct target scores and infinity,
    and the rates there; also the sorted scores. No threshold between two corners has
    fewer errors of either kind than the upper one."""
    target, nontarget = map(np.sort, _both(target_scores, nontarget_scores))
    thresholds = _different(target)
    far, frr = _rates_at(thresholds, target, nontarget)
    corners = np.r_[thresholds, np.inf], np.r_[far, 0.0], np.r_[frr, 1.0]
    return *corners, target, nontarget


def crossing(far: np.ndarray, frr: np.ndarray) -> tuple[float, int]:
    """Where FAR and FRR are equal, on the lines between points of falling FAR and
    rising FRR.

    Arguments
    ---------
    far, frr : numpy.ndarray
        The points, [n]; the last has to be at or past the crossing.

    Returns
    -------
    rate : float
        The rate there.
    right : int
        Index of the first point at or past it.
    """
    right = int(np.argmax(frr >= far))
    left = max(right - 1, 0)
    gap_left, gap_right = far[left] - frr[left], frr[right] - far[right]
    gaps = gap_left + gap_right
    share = gap_left / gaps if gaps > 0 else 0.0
    return float(far[left] + share * (far[right] - far[left])), right


def equal_error_rate(target_scores, nontarget_scores) -> tuple[float, float]:
    """Equal error rate: where FAR and FRR cross on the line between the exact points.

    Arguments
    ---------
    target_scores : array or torch.Tensor
        Scores of the target trials, [n_target].
    nontarget_scores : array or torch.Tensor
        Scores of the non-target trials, [n_nontarget].

    Returns
    -------
    eer : float
        The equal error rate, a fraction.
    threshold : float
        The threshold at which FAR and FRR are closest to it.

    Raises
    ------
    ValueError
        Empty, non-finite or not one-dimensional scores.

    Example
    -------
    >>> equal_error_rate([0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1])
    (0.25, 0.6)
    """
    corners, far, frr, target, nontarget = _corners(target_scores, nontarget_scores)
    right = int(np.argmax(frr >= far))
    low, high = -np.inf if right == 0 else corners[right - 1], corners[right]
    # All thresholds from the corner before the crossing to the one after it.
    first, last = np.searchsorted(nontarget, [low, high])
    between = np.unique(nontarget[first:last])
    thresholds = np.r_[between, high]
    if low > -np.inf and (first == last or between[0] > low):
        thresholds = np.r_[low, thresholds]
    far, frr = _rates_at(thresholds, target, nontarget)
    eer, _ = crossing(far, frr)
    nearest = int(np.argmin(np.abs(far - frr)))
    return eer, float(thresholds[nearest])


def convex_hull_eer(target_scores, nontarget_scores) -> float:
    """Equal error rate on the convex hull of the ROC: the best that a random choice
    between operating points can reach (Brümmer & de Villiers, BOSARIS, 2011).

    It is never above the equal error rate, and does not depend on where a few scores
    happen to lie.

    Arguments
    ---------
    target_scores, nontarget_scores
        See `equal_error_rate`, also for the errors raised.

    Returns
    -------
    float
        A fraction, at most 1/2.

    Example
    -------
    >>> round(convex_hull_eer([0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1]), 4)
    0.1667
    """
    target, nontarget = _both(target_scores, nontarget_scores)
    _, n_target, n_nontarget = _pool_adjacent_violators(target, nontarget)
    far = 1.0 - np.r_[0, np.cumsum(n_nontarget)] / len(nontarget)
    frr = np.r_[0, np.cumsum(n_target)] / len(target)
    return crossing(far, frr)[0]


def detection_cost(
    far, frr, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
):
    """Normalised detection cost: that of the decisions, divided by that of the better
    of accepting all and rejecting all.

    Arguments
    ---------
    far, frr : float or numpy.ndarray
        Fractions, of one shape.
    p_target, c_miss, c_fa : float
        See `min_dcf`.

    Returns
    -------
    float or numpy.ndarray
        Of the same shape.

    Example
    -------
    >>> detection_cost(far=0.0, frr=0.5, p_target=0.5)
    0.5
    """
    cost = c_miss * p_target * frr + c_fa * (1 - p_target) * far
    return cost / min(c_miss * p_target, c_fa * (1 - p_target))


def min_dcf(
    target_scores,
    nontarget_scores,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> tuple[float, float]:
    """Minimum of the normalised detection cost (NIST SRE evaluation plans).

    The cost `c_miss * FRR * p_target + c_fa * FAR * (1 - p_target)` is divided by that
    of the better of accepting all and rejecting all, so that 1 means useless.

    Arguments
    ---------
    target_scores : array or torch.Tensor
        Scores of the target trials, [n_target].
    nontarget_scores : array or torch.Tensor
        Scores of the non-target trials, [n_nontarget].
    p_target : float
        Prior probability of a target trial.
    c_miss, c_fa : float
        Costs of a false rejection and of a false acceptance.

    Returns
    -------
    min_dcf : float
        The smallest normalised cost, from 0 to 1.
    threshold : float
        The threshold that reaches it; infinite if rejecting all is best.

    Raises
    ------
    ValueError
        Empty, non-finite or not one-dimensional scores; a prior outside (0, 1).

    Example
    -------
    >>> min_dcf([0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1], p_target=0.5)
    (0.25, 0.7)
    """
    _check_costs(p_target, c_miss, c_fa)
    thresholds, far, frr, *_ = _corners(target_scores, nontarget_scores)
    cost = detection_cost(far, frr, p_target, c_miss, c_fa)
    best = int(np.argmin(cost))
    return float(cost[best]), float(thresholds[best])


def verification_rates(target_scores, nontarget_scores) -> dict:
    """The metrics of a split in `metrics.json`.

    Arguments
    ---------
    target_scores, nontarget_scores : numpy.ndarray or torch.Tensor
        Scores of same-speaker and of different-speaker trials.

    Returns
    -------
    dict
        `eer`, `eer_threshold`, `min_dcf` (p_target 0.01), `n_target`, `n_nontarget`.

    Raises
    ------
    ValueError
        As for `equal_error_rate`.
    """
    eer, threshold = equal_error_rate(target_scores, nontarget_scores)
    return {
        "eer": eer,
        "eer_threshold": threshold,
        "min_dcf": min_dcf(target_scores, nontarget_scores)[0],
        "n_target": len(target_scores),
        "n_nontarget": len(nontarget_scores),
    }


def far_frr(target_scores, nontarget_scores, threshold: float) -> tuple[float, float]:
    """FAR and FRR at a threshold.

    Arguments
    ---------
    target_scores, nontarget_scores
        See `equal_error_rate`, also for the errors raised.
    threshold : float
        Scores at or above it are accepted.

    Returns
    -------
    far, frr : float
        Fractions.

    Example
    -------
    >>> far_frr([2.0, 3.0], [1.0, 2.0], threshold=2.5)
    (0.0, 0.5)
    """
    target, nontarget = _both(target_scores, nontarget_scores)
    return float((nontarget >= threshold).mean()), float((target < threshold).mean())


def bayes_threshold(
    p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """The threshold on log-likelihood ratios (natural logarithm) with the minimum
    expected cost.

    Arguments
    ---------
    p_target : float
        Prior probability of a target trial.
    c_miss, c_fa : float
        Costs of a false rejection and of a false acceptance.

    Returns
    -------
    float
        log(c_fa (1 - p_target) / (c_miss p_target)).

    Raises
    ------
    ValueError
        A prior outside (0, 1), a cost that is not above 0.

    Example
    -------
    >>> bayes_threshold(p_target=0.5)
    0.0
    """
    _check_costs(p_target, c_miss, c_fa)
    return math.log(c_fa * (1 - p_target) / (c_miss * p_target))


def act_dcf(
    target_llrs,
    nontarget_llrs,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Actual normalised detection cost of log-likelihood ratios: that of deciding at
    `bayes_threshold`. Its excess over `min_dcf` is the cost of miscalibration.

    Arguments
    ---------
    target_llrs : array or torch.Tensor
        Log-likelihood ratios (natural logarithm) of the target trials, [n_target].
    nontarget_llrs : array or torch.Tensor
        Those of the non-target trials, [n_nontarget].
    p_target, c_miss, c_fa : float
        See `min_dcf`, also for the errors raised.

    Returns
    -------
    float
        The normalised cost, from 0 to more than 1.

    Example
    -------
    >>> act_dcf([2.0, -1.0], [-3.0, -2.0], p_target=0.5)
    0.5
    """
    far, frr = far_frr(
        target_llrs, nontarget_llrs, bayes_threshold(p_target, c_miss, c_fa)
    )
    return detection_cost(far, frr, p_target, c_miss, c_fa)


def cllr(target_llrs, nontarget_llrs) -> float:
    """Cost of log-likelihood ratios over all priors, in bits (Brümmer & du Preez,
    Computer Speech & Language 20, 2006, eq. 15); 1 for uninformative ratios.

    Arguments
    ---------
    target_llrs : array or torch.Tensor
        Log-likelihood ratios (natural logarithm) of the target trials, [n_target].
    nontarget_llrs : array or torch.Tensor
        Those of the non-target trials, [n_nontarget].

    Returns
    -------
    float
        From 0 upwards.

    Raises
    ------
    ValueError
        Empty, non-finite or not one-dimensional ratios.

    Example
    -------
    >>> cllr([0.0, 0.0], [0.0])
    1.0
    """
    target, nontarget = _both(target_llrs, nontarget_llrs)
    of_targets = cost_of_ratio(target, True).mean(dtype=np.float64)
    of_nontargets = cost_of_ratio(nontarget, False).mean(dtype=np.float64)
    return float(of_targets + of_nontargets) / 2


def cost_of_ratio(llrs: np.ndarray, is_target) -> np.ndarray:
    """What a log-likelihood ratio adds to `cllr`, in bits.

    Arguments
    ---------
    llrs : numpy.ndarray
        Log-likelihood ratios (natural logarithm), of any shape.
    is_target : bool or numpy.ndarray
        Whether they are of target trials, of the same shape if it is an array.

    Returns
    -------
    numpy.ndarray
        log2(1 + 1 / ratio) for target trials, log2(1 + ratio) for others.
    """
    return np.logaddexp(0, np.where(is_target, -llrs, llrs)) / math.log(2)


def min_cllr(target_scores, nontarget_scores) -> float:
    """`cllr` after the best increasing map of the scores to log-likelihood ratios,
    found by pooling adjacent violators (Brümmer & du Preez, 2006, section 5).

    Arguments
    ---------
    target_scores, nontarget_scores
        See `equal_error_rate`, also for the errors raised.

    Returns
    -------
    float
        From 0 to 1.

    Example
    -------
    >>> min_cllr([3.0, 4.0], [1.0, 2.0])
    0.0
    """
    target, nontarget = _both(target_scores, nontarget_scores)
    _, n_target, n_nontarget = _pool_adjacent_violators(target, nontarget)
    llrs = _block_llrs(n_target, n_nontarget)
    bits = cost_of_ratio(llrs, True)
    of_targets = bits[n_target > 0] @ n_target[n_target > 0]
    bits = cost_of_ratio(llrs, False)
    of_nontargets = bits[n_nontarget > 0] @ n_nontarget[n_nontarget > 0]
    return float(of_targets / len(target) + of_nontargets / len(nontarget)) / 2


def optimal_llrs(target_scores, nontarget_scores) -> tuple[np.ndarray, np.ndarray]:
    """The map whose cost is `min_cllr`, an increasing step function.

    Arguments
    ---------
    target_scores, nontarget_scores
        See `equal_error_rate`, also for the errors raised.

    Returns
    -------
    scores : numpy.ndarray
        Where each step begins, ascending, [steps].
    llrs : numpy.ndarray
        The log-likelihood ratio (natural logarithm) from there on; infinite where all
        trials are of one kind, [steps].

    Example
    -------
    >>> scores, llrs = optimal_llrs([2.0, 3.0], [1.0, 2.0])
    >>> scores.tolist(), llrs.tolist()
    ([1.0, 2.0, 3.0], [-inf, 0.0, inf])
    """
    target, nontarget = _both(target_scores, nontarget_scores)
    scores, n_target, n_nontarget = _pool_adjacent_violators(target, nontarget)
    return scores, _block_llrs(n_target, n_nontarget)


def _block_llrs(n_target: np.ndarray, n_nontarget: np.ndarray) -> np.ndarray:
    """Of each block, the log odds of a target less those of all trials."""
    with np.errstate(divide="ignore"):
        return np.log(n_target / n_target.sum()) - np.log(
            n_nontarget / n_nontarget.sum()
        )


def _pool_adjacent_violators(target, nontarget) -> tuple[np.ndarray, ...]:
    """The blocks of the best increasing map from scores to probabilities of a target:
    the lowest score, the number of targets and that of non-targets of each."""
    target, nontarget = np.sort(target), np.sort(nontarget)
    scores = _different(target, nontarget)
    n_target = np.diff(np.r_[np.searchsorted(target, scores), len(target)])
    n_nontarget = np.diff(np.r_[np.searchsorted(nontarget, scores), len(nontarget)])
    n = n_target + n_nontarget
    blocks = isotonic_regression(n_target / n, weights=n).blocks[:-1]
    return (
        scores[blocks],
        np.add.reduceat(n_target, blocks),
        np.add.reduceat(n_nontarget, blocks),
    )
