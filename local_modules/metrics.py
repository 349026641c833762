"""Error rates of verification scores. A higher score means more alike.

A trial is accepted if its score is at least the threshold. The false acceptance rate
(FAR) is the share of accepted non-target trials, the false rejection rate (FRR) that of
rejected target trials. All rates are fractions.
"""

import numpy as np


def _scores(scores, name: str) -> np.ndarray:
    """A one-dimensional, finite NumPy array from an array or a tensor."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double().numpy()
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise ValueError(f"{name} has {scores.ndim} dimensions, not 1")
    if scores.size == 0:
        raise ValueError(f"{name} is empty: there is no such trial")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} holds NaN or infinite scores")
    return scores


def error_rates(
    target_scores, nontarget_scores
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FAR and FRR at every threshold that makes a difference, by one sort.

    Arguments
    ---------
    target_scores : array or torch.Tensor
        Scores of the target trials, [n_target].
    nontarget_scores : array or torch.Tensor
        Scores of the non-target trials, [n_nontarget].

    Returns
    -------
    thresholds : numpy.ndarray
        The different scores in rising order, and infinity at the end, [n].
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
    target = _scores(target_scores, "target_scores")
    nontarget = _scores(nontarget_scores, "nontarget_scores")
    scores = np.concatenate([target, nontarget])
    is_target = np.zeros(len(scores), dtype=bool)
    is_target[: len(target)] = True
    order = np.argsort(scores)
    scores, is_target = scores[order], is_target[order]
    # Equal scores are accepted or rejected together: one threshold for each run.
    firsts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    targets_below = np.r_[0, np.cumsum(is_target)]
    below = np.r_[firsts, len(scores)]
    rejected_targets = targets_below[below]
    rejected_nontargets = below - rejected_targets
    thresholds = np.r_[scores[firsts], np.inf]
    far = 1.0 - rejected_nontargets / len(nontarget)
    return thresholds, far, rejected_targets / len(target)


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
    thresholds, far, frr = error_rates(target_scores, nontarget_scores)
    # The last point has FAR 0 and FRR 1, the first FAR 1 and FRR 0: they do cross.
    right = int(np.argmax(frr >= far))
    left = right - 1
    gap_left, gap_right = far[left] - frr[left], frr[right] - far[right]
    share = gap_left / (gap_left + gap_right)
    eer = far[left] + share * (far[right] - far[left])
    nearest = left if gap_left <= gap_right else right
    return float(eer), float(thresholds[nearest])


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
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is {p_target}, not between 0 and 1")
    thresholds, far, frr = error_rates(target_scores, nontarget_scores)
    cost = c_miss * p_target * frr + c_fa * (1 - p_target) * far
    best = int(np.argmin(cost))
    default_cost = min(c_miss * p_target, c_fa * (1 - p_target))
    return float(cost[best] / default_cost), float(thresholds[best])
