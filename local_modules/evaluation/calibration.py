"""From scores to log-likelihood ratios, by logistic regression.

Several scores of a trial are fused. Measures of the recordings' quality can shift the
ratio too: a short recording says less. The idea is that of quality measure functions
(Thienpondt, Desplanques & Demuynck, ICASSP 2021), the prior-weighted training that of
Brümmer & du Preez (Computer Speech & Language 20, 2006).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from local_modules.errors import InputError
from local_modules.files import replacing
from local_modules.metrics import cllr

N_HALVINGS = 10  # of the speakers, in cross-validation
N_BINS = 50  # of the histograms of the ratios
CLEARLY = 0.75  # share of the halves in which quality has to improve the ratios
DENSITIES = ("edges", "target", "nontarget")


@dataclass(frozen=True)
class Calibration:
    """An affine map from scores and quality measures to a log-likelihood ratio.

    Arguments
    ---------
    weights : dict of str to float
        By name of the score or quality measure.
    offset : float
        Added to the weighted sum.
    densities : dict of str to list of float | None
        Histograms of the ratios of the trials that it was fitted on: heights `target`
        and `nontarget` between the `edges` of the bins, of which there is one more.
        None for a calibration from before they were kept.
    ranges : dict of str to list of float
        Minimum and maximum of each quality measure in those trials; values beyond are
        clipped, because nothing is known of such recordings.

    Example
    -------
    >>> calibration = Calibration({"score": 2.0}, offset=-1.0)
    >>> calibration({"score": np.array([0.5, 1.0])})
    array([0., 1.])
    """

    weights: dict[str, float]
    offset: float
    densities: dict[str, list[float]] | None = None
    ranges: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log-likelihood ratios (natural logarithm) of trials.

        Arguments
        ---------
        measures : mapping of str to numpy.ndarray
            Scores and qualities, [trials] each; those without a weight are ignored.

        Returns
        -------
        numpy.ndarray
            [trials]; above 0 favours the same speaker.
        """
        llrs = self.offset
        for name, weight in self.weights.items():
            values = measures[name]
            if name in self.ranges:
                values = np.clip(values, *self.ranges[name])
            llrs = llrs + weight * values
        return llrs

    def _check(self) -> None:
        """Checks the values, because a file may come from anywhere.

        Raises
        ------
        ValueError, TypeError, LookupError
            They are not those of a calibration.
        """
        numbers = [self.offset, *self.weights.values(), *chain(*self.ranges.values())]
        if self.densities is not None:
            edges, *heights = (self.densities[name] for name in DENSITIES)
            if any(len(values) != len(edges) - 1 for values in heights):
                raise ValueError("the densities do not match their edges")
            numbers += chain(edges, *heights)
        if not np.isfinite(numbers).all():
            raise ValueError("it has values that are not finite")
        none = dict.fromkeys(self.weights, np.zeros(1))
        float(self(none)[0])

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON."""
        with replacing(path) as file:
            json.dump(asdict(self), file, indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads what `save` has written.

        Raises
        ------
        InputError
            The file can't be read, holds something else, or values are not finite.
        """
        try:
            calibration = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            calibration._check()
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise InputError(f"{path}: is not a calibration: {error}") from None
        return calibration


def fit_calibration(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    qualities: Mapping[str, np.ndarray] | None = None,
    p_target: float = 0.05,
    penalty: float = 1e-5,
) -> Calibration:
    """Fits a calibration on trials of known truth.

    Arguments
    ---------
    scores : mapping of str to numpy.ndarray
        By name, [trials] each.
    labels : numpy.ndarray
        True for target trials, bool, [trials].
    qualities : mapping of str to numpy.ndarray | None
        Quality measures that may shift the ratio, [trials] each.
    p_target : float
        Prior at which the ratios have to be good: the total weight of target trials,
        however many there are.
    penalty : float
        Weight of the squared weights of standardised measures, relative to the mean
        cross-entropy; it keeps ratios finite for perfectly separated trials.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        Trials of only one kind, scores or qualities of another length or not finite.

    Example
    -------
    >>> scores = np.array([0.1, 0.2, 0.4, 0.3, 0.6, 0.7])
    >>> calibration = fit_calibration({"score": scores}, scores > 0.35)
    >>> calibration.weights["score"] > 0
    True
    """
    # Takes a second, and loading a calibration doesn't need it.
    from sklearn.linear_model import LogisticRegression

    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError("labels has only one kind of trials; both are needed")
    qualities = qualities or {}
    measures = {**scores, **qualities}
    table = np.stack([np.asarray(measures[name], float) for name in measures], axis=1)
    if table.shape[0] != len(labels) or not np.isfinite(table).all():
        raise ValueError(
            f"scores and qualities have {table.shape[0]} rows for {len(labels)} "
            "labels, or values that are not finite"
        )
    mean, std = table.mean(axis=0), table.std(axis=0)
    # A measure that is constant, up to rounding, gets no weight.
    std[std < 1e-9 * (1 + np.abs(mean))] = np.inf
    shares = np.where(labels, p_target / labels.sum(), (1 - p_target) / (~labels).sum())
    model = LogisticRegression(C=1 / (2 * penalty), max_iter=1000, tol=1e-8)
    model.fit((table - mean) / std, labels, sample_weight=shares)
    weights = model.coef_[0] / std
    # The regression gives posterior log-odds: the prior's are subtracted.
    prior = np.log(p_target / (1 - p_target))
    offset = model.intercept_[0] - weights @ mean - prior
    calibration = Calibration(
        dict(zip(measures, weights.tolist(), strict=True)),
        float(offset),
        ranges={
            name: [float(np.min(values)), float(np.max(values))]
            for name, values in qualities.items()
        },
    )
    return replace(calibration, densities=_densities(calibration(measures), labels))


def _densities(llrs: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(llrs, N_BINS)
    sides = {"target": llrs[labels], "nontarget": llrs[~labels]}
    heights = {
        name: np.histogram(side, edges, density=True)[0] for name, side in sides.items()
    }
    return {
        name: values.tolist() for name, values in {"edges": edges, **heights}.items()
    }


def quality_helps(
    scores: Mapping[str, np.ndarray],
    qualities: Mapping[str, np.ndarray],
    labels: np.ndarray,
    enrol_speakers: np.ndarray,
    test_speakers: np.ndarray,
) -> bool:
    """Whether quality measures improve the ratios of speakers that the calibration has
    not seen, by repeatedly fitting on half of the speakers and testing on the other
    half: many weights overfit few speakers.

    Arguments
    ---------
    scores, qualities : mapping of str to numpy.ndarray
        As for `fit_calibration`.
    labels : numpy.ndarray
        As for `fit_calibration`.
    enrol_speakers, test_speakers : numpy.ndarray
        Numbers of the sides' speakers from 0, int64, [trials].

    Returns
    -------
    bool
        Also False if there are too few speakers to be halved.
    """
    n_speakers = 1 + int(max(enrol_speakers.max(), test_speakers.max()))
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(N_HALVINGS):
        in_first = rng.permutation(n_speakers) % 2 == 0
        sides = in_first[enrol_speakers], in_first[test_speakers]
        halves = sides[0] & sides[1], ~(sides[0] | sides[1])
        if not all(0 < labels[half].sum() < half.sum() for half in halves):
            continue
        for seen, left_out in (halves, halves[::-1]):
            costs = []
            for tried in ({}, qualities):
                calibration = fit_calibration(
                    _part(scores, seen), labels[seen], _part(tried, seen)
                )
                llrs = calibration(_part({**scores, **tried}, left_out))
                truth = labels[left_out]
                costs.append(cllr(llrs[truth], llrs[~truth]))
            outcomes.append(costs[1] < costs[0])
    return bool(outcomes) and float(np.mean(outcomes)) > CLEARLY


def _part(measures: Mapping[str, np.ndarray], rows) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in measures.items()}
