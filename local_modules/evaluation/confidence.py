"""Confidence intervals of error rates, by resampling the speakers of a trial list.

Trials that share a speaker are correlated, so an interval from resampled trials is too
narrow. Here a speaker that is drawn k times counts k times (the user-specific bootstrap
of Poh, Martin & Bengio, IEEE PAMI 29(3), 2007): its target trials weigh k, a non-target
trial the product of its two speakers' counts.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from local_modules.metrics import cost_of_ratio, crossing, detection_cost

LEVEL = 0.95


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of a metric's bootstrap replicates.

    Arguments
    ---------
    replicates : numpy.ndarray
        As of `bootstrap`, [n_resamples].

    Returns
    -------
    low, high : float
    """
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def known_interval(replicates: np.ndarray) -> tuple[float, float] | None:
    """The interval, or None where resamples say nothing: none has an error, but for
    rounding, or none has trials of both kinds.

    Arguments
    ---------
    replicates : numpy.ndarray
        Fractions, as of `bootstrap`, [n_resamples].

    Returns
    -------
    tuple of float, or None
        See `interval`.

    Example
    -------
    >>> known_interval(np.array([0.25, 0.25])), known_interval(np.zeros(2))
    ((0.25, 0.25), None)
    """
    return interval(replicates) if np.any(replicates > 1e-9) else None


def unseen_error_rate(n_speakers: int) -> float:
    """The error rate that other speakers may have where these have none: without an
    error among the trials, there is none in a resample either.

    It is about 3 / `n_speakers`, the rule of three (Hanley & Lippman-Hand, JAMA 249,
    1983). Speakers are counted, not trials, because those of a speaker err together.

    Arguments
    ---------
    n_speakers : int
        How many were without an error.

    Returns
    -------
    float
        If more speakers than this share made errors, one would have been seen in 95 %
        of such samples.

    Example
    -------
    >>> round(unseen_error_rate(300), 4)
    0.0099
    """
    return 1 - (1 - LEVEL) ** (1 / n_speakers)


def p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value of the difference between two systems on the same trials.

    Arguments
    ---------
    one, other : numpy.ndarray
        Replicates of the same resamples, [n_resamples].

    Returns
    -------
    float
        Twice the share of resamples in which the difference has the rarer sign; those
        without a difference count for both signs.
    """
    difference = one - other
    difference = difference[np.isfinite(difference)]
    # Counting the sample itself, so that it is never 0 (Davison & Hinkley, 1997, 4.2).
    n = len(difference) + 1
    rarer = 1 + min((difference <= 0).sum(), (difference >= 0).sum())
    return float(min(1.0, 2 * rarer / n))


def speakers_of(
    labels: np.ndarray, enrol: Sequence, test: Sequence
) -> tuple[np.ndarray, np.ndarray]:
    """The speakers of a trial list, as far as its labels imply them: two sides are of
    one speaker if target trials connect them.

    Arguments
    ---------
    labels : numpy.ndarray
        True for target trials, bool, [n_trials].
    enrol, test : sequence
        Names of the two sides, of length n_trials: of their speakers where they are
        known, or of recordings. A recording in no target trial then gets a speaker of
        its own.

    Returns
    -------
    enrol_speakers, test_speakers : numpy.ndarray
        Numbers of the speakers from 0, int64, [n_trials].

    Example
    -------
    >>> speakers_of(np.array([True, False]), ["a1", "a1"], ["a2", "b1"])
    (array([0, 0]), array([0, 1]))
    """
    names, index = np.unique([*enrol, *test], return_inverse=True)
    rows, columns = index[: len(enrol)], index[len(enrol) :]
    edges = np.ones(int(labels.sum()))
    graph = coo_matrix((edges, (rows[labels], columns[labels])), 2 * (len(names),))
    _, speaker = connected_components(graph, directed=False)
    speaker = speaker.astype(np.int64)
    return speaker[rows], speaker[columns]


def bootstrap(
    scores: np.ndarray,
    labels: np.ndarray,
    speakers: tuple[np.ndarray, np.ndarray],
    n_resamples: int,
    p_targets: Sequence[float],
    are_llrs: bool = False,
) -> dict[str, np.ndarray]:
    """Metrics of resamples of the speakers of a trial list. The draws are always the
    same, so the replicates of two systems can be compared one by one.

    Arguments
    ---------
    scores : numpy.ndarray
        Of the trials, [n_trials].
    labels : numpy.ndarray
        True for target trials, bool, [n_trials].
    speakers : tuple of numpy.ndarray
        Numbers of the speakers of the two sides, from 0, [n_trials] each.
    n_resamples : int
        How many times the speakers are drawn.
    p_targets : sequence of float
        Priors of the detection costs.
    are_llrs : bool
        Whether the scores are log-likelihood ratios, which have a C_llr.

    Returns
    -------
    dict
        `eer`, `min_dcf_<prior>` and, for log-likelihood ratios, `cllr`, each
        [n_resamples]; NaN where a resample has trials of one kind only.

    Example
    -------
    >>> labels, speakers = np.array([1, 1, 0, 0], bool), np.array([0, 1, 0, 1])
    >>> sides = speakers, 1 - speakers * ~labels
    >>> found = bootstrap(np.array([3.0, 2.0, 1.0, 0.0]), labels, sides, 50, [0.01])
    >>> interval(found["eer"])
    (0.0, 0.0)
    """
    order = np.argsort(scores)
    ordered, is_target = scores[order], labels[order]
    enrol, test = (side[order] for side in speakers)
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    names = ["eer", *(f"min_dcf_{p}" for p in p_targets)]
    names += ["cllr"] if are_llrs else []
    bits = cost_of_ratio(ordered, is_target) if are_llrs else None
    found = np.full((n_resamples, len(names)), np.nan)
    rng = np.random.default_rng(0)
    present = np.unique(np.concatenate([enrol, test]))
    for row in found:
        drawn = rng.choice(present, len(present))
        counts = np.bincount(drawn, minlength=present[-1] + 1).astype(np.float64)
        weights = counts[enrol] * np.where(is_target, 1.0, counts[test])
        targets, nontargets = weights * is_target, weights * ~is_target
        n_target, n_nontarget = targets.sum(), nontargets.sum()
        if n_target == 0 or n_nontarget == 0:
            continue
        frr = np.r_[0.0, np.cumsum(targets)[ends] / n_target]
        far = 1.0 - np.r_[0.0, np.cumsum(nontargets)[ends] / n_nontarget]
        row[0] = crossing(far, frr)[0]
        for index, p in enumerate(p_targets, start=1):
            row[index] = detection_cost(far, frr, p).min()
        if are_llrs:
            # `@` takes up to ten times longer while other programs use the cores.
            costs = bits * (targets / n_target + nontargets / n_nontarget)
            row[-1] = costs.sum() / 2
    return dict(zip(names, found.T, strict=True))
