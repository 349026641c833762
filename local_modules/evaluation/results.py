"""Metrics of scores and their confidence intervals, for all trials and for parts."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from local_modules.errors import InputError
from local_modules.evaluation.confidence import (
    bootstrap,
    known_interval,
    p_value,
    unseen_error_rate,
)
from local_modules.metrics import (
    act_dcf,
    bayes_threshold,
    cllr,
    convex_hull_eer,
    equal_error_rate,
    far_frr,
    min_cllr,
    min_dcf,
)

logger = get_logger(__name__)

PRIORS = (0.01, 0.05)  # of the detection costs
MAX_VALUES = 20  # of a metadata column; with more, it identifies, not classifies


@dataclass(frozen=True)
class Scored:
    """Trials with one system's scores.

    Arguments
    ---------
    scores : numpy.ndarray
        [trials].
    labels : numpy.ndarray
        True for target trials, bool, [trials].
    enrol_speakers, test_speakers : numpy.ndarray
        Numbers of the sides' speakers from 0, [trials].
    are_llrs : bool
        Whether the scores are log-likelihood ratios.
    """

    scores: np.ndarray
    labels: np.ndarray
    enrol_speakers: np.ndarray
    test_speakers: np.ndarray
    are_llrs: bool = False

    def part(self, rows: np.ndarray) -> "Scored":
        """Some of the trials."""
        return Scored(
            self.scores[rows],
            self.labels[rows],
            self.enrol_speakers[rows],
            self.test_speakers[rows],
            self.are_llrs,
        )

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the target and of the non-target trials."""
        return self.scores[self.labels], self.scores[~self.labels]

    def replicates(self, n_resamples: int) -> dict[str, np.ndarray]:
        """Metrics over resampled speakers, which can be compared one by one between
        systems."""
        sides = self.enrol_speakers, self.test_speakers
        return bootstrap(
            self.scores, self.labels, sides, n_resamples, PRIORS, self.are_llrs
        )


def measure(scored: Scored, replicates: Mapping[str, np.ndarray]) -> dict:
    """All metrics of a system.

    Arguments
    ---------
    scored : Scored
        Its trials.
    replicates : mapping of str to numpy.ndarray
        Of `scored.replicates`.

    Returns
    -------
    dict
        `eer`, `eer_threshold`, `eer_convex_hull`, `min_dcf_<prior>`, `min_cllr`,
        `n_target`, `n_nontarget`; for log-likelihood ratios `cllr`, `act_dcf_<prior>`
        and the operating point that the prior gives, `threshold_<prior>`,
        `far_<prior>`, `frr_<prior>`; and `intervals`, 95 % by metric, None if unknown.
    """
    pair = scored.pair
    eer, threshold = equal_error_rate(*pair)
    found = {
        "eer": eer,
        "eer_threshold": threshold,
        "eer_convex_hull": convex_hull_eer(*pair),
        "min_cllr": min_cllr(*pair),
        "n_target": len(pair[0]),
        "n_nontarget": len(pair[1]),
    }
    for prior in PRIORS:
        found[f"min_dcf_{prior}"] = min_dcf(*pair, prior)[0]
        if scored.are_llrs:
            found[f"act_dcf_{prior}"] = act_dcf(*pair, prior)
            threshold = bayes_threshold(prior)
            found[f"threshold_{prior}"] = threshold
            found[f"far_{prior}"], found[f"frr_{prior}"] = far_frr(*pair, threshold)
    if scored.are_llrs:
        found["cllr"] = cllr(*pair)
    found["intervals"] = {n: known_interval(row) for n, row in replicates.items()}
    if eer == 0:
        # Of the kind of trials that has fewer: either could have had an error.
        sides = np.stack([scored.enrol_speakers, scored.test_speakers])
        kinds = scored.labels, ~scored.labels
        n_speakers = min(len(np.unique(sides[:, kind])) for kind in kinds)
        found["intervals"]["eer"] = 0.0, unseen_error_rate(n_speakers)
    return found


def measure_systems(
    systems: Mapping[str, Scored], compared_with: Mapping[str, str], n_resamples: int
) -> dict[str, dict]:
    """All metrics of several systems on the same trials.

    Arguments
    ---------
    systems : mapping of str to Scored
        By name.
    compared_with : mapping of str to str
        Which system each is compared with; itself for none.
    n_resamples : int
        How many times the speakers are drawn.

    Returns
    -------
    dict
        By name, what `measure` gives, and for a comparison `compared_with` and
        `p_value`, the significance of the difference in EER.
    """
    progress = tqdm(systems.items(), desc="Systems", unit="system", disable=None)
    replicates = {name: system.replicates(n_resamples) for name, system in progress}
    found = {name: measure(s, replicates[name]) for name, s in systems.items()}
    for name, other in compared_with.items():
        if other != name:
            p = p_value(replicates[other]["eer"], replicates[name]["eer"])
            found[name] |= {"compared_with": other, "p_value": p}
    return found


def read_metadata(path: str | Path) -> dict[str, dict[str, str]]:
    """Reads metadata of recordings: a CSV file, or TSV if its name ends in `.tsv`, with
    a column `path`.

    Returns
    -------
    dict
        By path, values by column.

    Raises
    ------
    InputError
        The file can't be read, has no such column, or has a row with more or fewer
        fields than columns.
    """
    delimiter = "\t" if Path(path).suffix == ".tsv" else ","
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            if "path" not in (reader.fieldnames or ()):
                raise InputError(
                    f"{path}: has no column path; it has "
                    f"{', '.join(reader.fieldnames or ['nothing'])}"
                )
            found = {}
            for row in reader:
                has_more = None in row
                if has_more or None in row.values():
                    raise InputError(
                        f"{path}:{reader.line_num}: has "
                        f"{'more' if has_more else 'fewer'} fields than the first line"
                    )
                found[row.pop("path")] = row
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as metadata: {error}") from None


def groups_by_metadata(
    metadata: Mapping[str, Mapping[str, str]],
    enrol: Sequence[Sequence[str]],
    test: Sequence[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Parts of the trials, by the metadata that their recordings share.

    Arguments
    ---------
    metadata : mapping
        Of `read_metadata`.
    enrol : sequence of sequence of str
        Paths of each trial's enrolment.
    test : sequence of str
        Path of each trial's test side.

    Returns
    -------
    dict
        By column and value, the rows of the trials whose recordings all have that
        value, and as `different` the others; int64 arrays. Columns with only one
        value, or with more than `MAX_VALUES`, are left out.
    """
    columns = dict.fromkeys(key for row in metadata.values() for key in row)
    found = {}
    for column in columns:
        values = [
            {metadata.get(path, {}).get(column, "?") for path in (*paths, other)}
            for paths, other in zip(enrol, test, strict=True)
        ]
        names = np.array([v.pop() if len(v) == 1 else "different" for v in values])
        different = np.unique(names)
        if len(different) > MAX_VALUES:
            logger.warning(
                "metadata: %s has %d values, more than %d, so trials are not grouped "
                "by it",
                column,
                len(different),
                MAX_VALUES,
            )
        elif len(different) > 1:
            found[column] = {str(v): np.flatnonzero(names == v) for v in different}
    return found


def groups_by_seconds(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Thirds of the trials by the duration of their shorter side.

    Arguments
    ---------
    seconds : numpy.ndarray
        Of the shorter side, [trials].

    Returns
    -------
    dict
        Rows of the trials by name of the part, int64 arrays.

    Example
    -------
    >>> parts = groups_by_seconds(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    >>> {name: rows.tolist() for name, rows in parts.items()}
    {'under 2.7 s': [0, 1], '2.7 to 4.3 s': [2, 3], '4.3 s and more': [4, 5]}
    """
    low, high = np.quantile(seconds, [1 / 3, 2 / 3])
    return {
        f"under {low:.1f} s": np.flatnonzero(seconds < low),
        f"{low:.1f} to {high:.1f} s": np.flatnonzero(
            (seconds >= low) & (seconds < high)
        ),
        f"{high:.1f} s and more": np.flatnonzero(seconds >= high),
    }


def measure_groups(
    scored: Scored, groups: Mapping[str, np.ndarray], n_resamples: int
) -> dict[str, dict]:
    """Metrics of parts of the trials; parts with only one kind of trials are left
    out."""
    found = {}
    for name, rows in groups.items():
        part = scored.part(rows)
        if 0 < part.labels.sum() < len(part.labels):
            found[name] = measure(part, part.replicates(n_resamples))
    return found
