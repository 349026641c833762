"""Scores of embeddings, by every method that a model's folder has the data for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from local_modules.errors import InputError, one_line
from local_modules.evaluation.calibration import (
    Calibration,
    fit_calibration,
    quality_helps,
)
from local_modules.evaluation.confidence import speakers_of
from local_modules.evaluation.plda import Plda, fit_plda
from local_modules.scoring import (
    cohort_statistics,
    enrol,
    normalise_scores,
    pair_products,
    speaker_means,
    subtract_mean,
    trial_rows,
)
from local_modules.trials import TrialList

STATISTICS = "backend.safetensors"
PLDA = "plda."  # prefix of the names of its parts
CALIBRATION = "calibration.json"
CALIBRATED = "calibrated"  # the name of the ratios among the scores
COHORT_UTTERANCES = 5  # of each speaker
FUSED = ("PLDA", "AS-norm")  # into one ratio
TOP_K = 300  # of the cohort, for adaptive normalisation


@dataclass(frozen=True, eq=False)
class Recordings:
    """The recordings of one side of the trials.

    Arguments
    ---------
    embeddings : torch.Tensor
        One per utterance, [n, emb_dim].
    seconds : numpy.ndarray
        Durations, [n].
    members : sequence of sequence of int | None
        Rows of each enrolled model, which is their mean; None if each row is a model.
    """

    embeddings: torch.Tensor
    seconds: np.ndarray
    members: Sequence[Sequence[int]] | None = None

    def sum_seconds(self) -> np.ndarray:
        """Seconds of speech of each model."""
        if self.members is None:
            return self.seconds
        return np.array([self.seconds[list(rows)].sum() for rows in self.members])

    def norms(self) -> np.ndarray:
        """Mean norm of each model's embeddings: larger for clear speech."""
        norms = self.embeddings.float().norm(dim=-1).numpy()
        if self.members is None:
            return norms
        return np.array([norms[list(rows)].mean() for rows in self.members])

    def vectors(self, mean: torch.Tensor | None = None) -> torch.Tensor:
        """One unit vector for each model, after the mean, if given, is subtracted,
        [models, emb_dim]."""
        vectors = subtract_mean(self.embeddings, mean)
        return vectors if self.members is None else enrol(vectors, self.members)


def cosines(
    enrolled: Recordings,
    tested: Recordings,
    rows: np.ndarray,
    columns: np.ndarray,
) -> torch.Tensor:
    """Cosine of the two sides of each trial.

    Arguments
    ---------
    enrolled, tested : Recordings
        The sides.
    rows, columns : numpy.ndarray
        Which model and which test utterance, int64, [trials].

    Returns
    -------
    torch.Tensor
        [trials], float32.
    """
    return pair_products(
        enrolled.vectors(),
        tested.vectors(),
        torch.from_numpy(rows),
        torch.from_numpy(columns),
    )


class _Side(NamedTuple):
    """What trials share, computed once for each model or recording."""

    vectors: torch.Tensor
    statistics: dict[str, tuple[torch.Tensor, torch.Tensor]]
    quality: dict[str, np.ndarray]


@dataclass(frozen=True)
class Backend:
    """What scoring needs besides the embeddings, estimated from training and validation
    speakers, never from those of the trials.

    Arguments
    ---------
    mean : torch.Tensor
        Mean embedding, [emb_dim].
    cohort : torch.Tensor
        Mean embeddings of the training speakers, of unit length after `mean` is
        subtracted, [speakers, emb_dim].
    plda : Plda | None
        Fitted to the training speakers.
    calibration : Calibration | None
        From scores and quality to log-likelihood ratios.
    """

    mean: torch.Tensor
    cohort: torch.Tensor
    plda: Plda | None = None
    calibration: Calibration | None = None

    def scores(
        self,
        enrolled: Recordings,
        tested: Recordings,
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Scores of trials, by every method.

        Arguments
        ---------
        enrolled, tested, rows, columns
            See `cosines`.

        Returns
        -------
        dict
            With a PLDA model `PLDA`; `mean subtracted`, `S-norm` and `AS-norm`; with a
            calibration `calibrated`, which are log-likelihood ratios; [trials] each.
        """
        found, qualities = self._scores(enrolled, tested, rows, columns)
        if self.calibration is not None:
            found[CALIBRATED] = self.calibration({**found, **qualities})
        return found

    def fitted(
        self,
        enrolled: Recordings,
        tested: Recordings,
        rows: np.ndarray,
        columns: np.ndarray,
        labels: np.ndarray,
        speakers: tuple[np.ndarray, np.ndarray],
    ) -> "Backend":
        """The same with a calibration for trials like these; it uses the quality of the
        recordings where that helps.

        Arguments
        ---------
        enrolled, tested, rows, columns
            See `cosines`; of validation speakers.
        labels : numpy.ndarray
            True for target trials, bool, [trials].
        speakers : tuple of numpy.ndarray
            Numbers of the sides' speakers from 0, int64, [trials] each.

        Returns
        -------
        Backend
        """
        scores, qualities = self._scores(enrolled, tested, rows, columns)
        scores = {name: scores[name] for name in FUSED if name in scores}
        if not quality_helps(scores, qualities, labels, *speakers):
            qualities = None
        return replace(self, calibration=fit_calibration(scores, labels, qualities))

    def _scores(self, enrolled, tested, rows, columns) -> tuple[dict, dict]:
        """Scores that are not ratios, and measures of the recordings' quality."""
        index = torch.from_numpy(rows), torch.from_numpy(columns)
        of_side = {side: self._side(side) for side in {enrolled, tested}}
        sides = of_side[enrolled], of_side[tested]
        vectors = [side.vectors for side in sides]
        raw = pair_products(*vectors, *index)
        found = {}
        if self.plda is not None:
            found["PLDA"] = self.plda.scores(*vectors, *index).numpy()
        found["mean subtracted"] = raw.numpy()
        for name in sides[0].statistics:
            statistics = (
                [value[i] for value in side.statistics[name]]
                for side, i in zip(sides, index, strict=True)
            )
            found[name] = normalise_scores(raw, *statistics).numpy()
        # The smaller of two sides and their sum: the sides can be exchanged.
        qualities = {}
        for name in sides[0].quality:
            one, other = (
                side.quality[name][i]
                for side, i in zip(sides, (rows, columns), strict=True)
            )
            qualities[f"{name}_sum"] = one + other
            qualities[f"{name}_least"] = np.minimum(one, other)
        return found, qualities

    def _side(self, side: Recordings) -> _Side:
        vectors = side.vectors(self.mean)
        statistics = {
            "S-norm": cohort_statistics(vectors, self.cohort),
            "AS-norm": cohort_statistics(vectors, self.cohort, TOP_K),
        }
        quality = {
            "log_seconds": np.log(side.sum_seconds()),
            "log_norm": np.log(side.norms()),
            "imposter_score": statistics["AS-norm"][0].numpy(),
        }
        return _Side(vectors, statistics, quality)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `backend.safetensors` and `calibration.json`."""
        statistics = {"mean": self.mean.float(), "cohort": self.cohort.float()}
        if self.plda is not None:
            parts = asdict(self.plda)
            statistics |= {f"{PLDA}{name}": value for name, value in parts.items()}
        statistics = {name: value.contiguous() for name, value in statistics.items()}
        save_file(statistics, str(Path(folder) / STATISTICS))
        if self.calibration is not None:
            self.calibration.save(Path(folder) / CALIBRATION)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Backend | None":
        """Reads what `save` has written; None if there is none.

        Raises
        ------
        InputError
            A file is broken, or its content is inconsistent.
        """
        path = Path(folder) / STATISTICS
        if not path.is_file():
            return None
        try:
            statistics = load_file(str(path))
            mean, cohort = statistics["mean"], statistics["cohort"]
            plda = None
            if any(name.startswith(PLDA) for name in statistics):
                parts = (statistics[f"{PLDA}{part.name}"] for part in fields(Plda))
                plda = Plda(*parts)
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{path}: can't be read: {error}") from None
        _check(path, statistics)
        backend = cls(mean, cohort, plda)
        calibration = Path(folder) / CALIBRATION
        if calibration.is_file():
            backend = replace(backend, calibration=Calibration.load(calibration))
        some, first = Recordings(cohort[:1], np.ones(1)), np.zeros(1, int)
        try:
            backend.scores(some, some, first, first)
        except KeyError as error:
            problem = f"{calibration}: weighs {error}, which is not among the scores"
            raise InputError(problem) from None
        except (RuntimeError, IndexError) as error:
            problem = f"{path}: its parts don't fit together: {one_line(error)}"
            raise InputError(problem) from None
        return backend


def _check(path: Path, statistics: Mapping[str, torch.Tensor]) -> None:
    """Checks the content of a file, because it may come from anywhere."""
    for name, values in statistics.items():
        if not values.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite")
    mean, cohort = list(statistics["mean"].shape), list(statistics["cohort"].shape)
    if len(mean) != 1 or cohort[1:] != mean or cohort[0] < 2:
        raise InputError(
            f"{path}: mean is {mean} and cohort {cohort}; they have to be [emb_dim] "
            "and [speakers, emb_dim], of two speakers or more"
        )


def fit_backend(
    embeddings: Mapping[str, torch.Tensor],
    seconds: Mapping[str, float],
    speakers: Mapping[str, str],
    trials: TrialList,
    training: Mapping[str, torch.Tensor],
    speaker_of: Mapping[str, str],
) -> Backend:
    """Makes a backend at the end of a training.

    Arguments
    ---------
    embeddings : mapping of str to torch.Tensor
        Embeddings of the validation recordings by path, [emb_dim].
    seconds : mapping of str to float
        Their durations.
    speakers : mapping of str to str
        Their speakers.
    trials : TrialList
        Their trials; those of a recording without an embedding are left out.
    training : mapping of str to torch.Tensor
        Embeddings of training utterances by name, [emb_dim].
    speaker_of : mapping of str to str
        Their speakers.

    Returns
    -------
    Backend
    """
    vectors = torch.stack(list(embeddings.values()))
    backend = cohort_backend(training, speaker_of, vectors.float().mean(dim=0))
    recordings = Recordings(vectors, np.array([seconds[path] for path in embeddings]))
    kept, rows, columns = trial_rows(list(embeddings), trials)
    labels = trials.labels[kept]
    names = np.array([speakers[path] for path in embeddings])
    return backend.fitted(
        *(recordings, recordings, rows, columns, labels),
        speakers_of(labels, names[rows], names[columns]),
    )


def cohort_backend(
    embeddings: Mapping[str, torch.Tensor],
    speaker_of: Mapping[str, str],
    mean: torch.Tensor | None = None,
) -> Backend:
    """Makes a backend without a calibration, from speakers that are in no trial.

    Arguments
    ---------
    embeddings : mapping of str to torch.Tensor
        Embeddings of their recordings by path, [emb_dim].
    speaker_of : mapping of str to str
        The speaker of each.
    mean : torch.Tensor | None
        Subtracted from embeddings, [emb_dim]; None for the mean of these.

    Returns
    -------
    Backend
    """
    vectors = torch.stack(list(embeddings.values())).float()
    if mean is None:
        mean = vectors.mean(dim=0)
    vectors = subtract_mean(vectors, mean)
    _, numbers = np.unique([speaker_of[p] for p in embeddings], return_inverse=True)
    numbers = torch.from_numpy(numbers)
    return Backend(mean, speaker_means(vectors, numbers), fit_plda(vectors, numbers))
