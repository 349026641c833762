"""From embeddings to scores in every way that a model's folder has the means for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from local_modules.calibration import Calibration, fit_calibration
from local_modules.errors import InputError
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
CALIBRATION = "calibration.json"
TOP_K = 300  # of the cohort, for adaptive normalisation


@dataclass(frozen=True)
class Recordings:
    """What one side of the trials is made of.

    Arguments
    ---------
    embeddings : torch.Tensor
        One per utterance, [n, emb_dim].
    seconds : numpy.ndarray
        Durations, [n].
    members : sequence of sequence of int | None
        Rows of each enrolled model; None if every row is one.
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
        """Mean norm of each model's embeddings: long for clear speech."""
        norms = self.embeddings.float().norm(dim=-1).numpy()
        if self.members is None:
            return norms
        return np.array([norms[list(rows)].mean() for rows in self.members])

    def vectors(self, mean: torch.Tensor | None = None) -> torch.Tensor:
        """One vector of length one for each model, after the mean is taken out if there
        is one, [models, emb_dim]."""
        embeddings = self.embeddings.float()
        if mean is not None:
            embeddings = subtract_mean(embeddings, mean)
        if self.members is None:
            return F.normalize(embeddings, dim=-1)
        return enrol(embeddings, self.members)


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


@dataclass(frozen=True)
class Backend:
    """What scoring needs beside the embeddings: from training and validation speakers,
    never from those of the trials.

    Arguments
    ---------
    mean : torch.Tensor
        Mean embedding, [emb_dim].
    cohort : torch.Tensor
        Mean embeddings of the training speakers, of length one after `mean` is taken
        out, [speakers, emb_dim].
    calibration : Calibration | None
        From `measures` to log-likelihood ratios.
    """

    mean: torch.Tensor
    cohort: torch.Tensor
    calibration: Calibration | None = None

    def scores(
        self,
        enrolled: Recordings,
        tested: Recordings,
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Scores of trials, in every way.

        Arguments
        ---------
        enrolled, tested, rows, columns
            See `cosines`.

        Returns
        -------
        dict
            `mean subtracted`, `S-norm` and `AS-norm`, and with a calibration
            `calibrated`, which are log-likelihood ratios; [trials] each.
        """
        found, measures = self._scores(enrolled, tested, rows, columns)
        if self.calibration is not None:
            found["calibrated"] = self.calibration(measures)
        return found

    def fitted(
        self,
        enrolled: Recordings,
        tested: Recordings,
        rows: np.ndarray,
        columns: np.ndarray,
        labels: np.ndarray,
    ) -> "Backend":
        """The same with a calibration for trials like these.

        Arguments
        ---------
        enrolled, tested, rows, columns
            See `cosines`; of validation speakers.
        labels : numpy.ndarray
            True for target trials, bool, [trials].

        Returns
        -------
        Backend
        """
        _, measures = self._scores(enrolled, tested, rows, columns)
        return Backend(self.mean, self.cohort, fit_calibration(measures, labels))

    def _scores(self, enrolled, tested, rows, columns) -> tuple[dict, dict]:
        """Scores that are no ratios, and what a calibration weighs."""
        sides = (enrolled, torch.from_numpy(rows)), (tested, torch.from_numpy(columns))
        vectors = [side.vectors(self.mean) for side, _ in sides]
        raw = pair_products(*vectors, *(index for _, index in sides))
        found = {"mean subtracted": raw.numpy()}
        for name, top_k in (("S-norm", None), ("AS-norm", TOP_K)):
            statistics = []
            for side, (_, index) in zip(vectors, sides, strict=True):
                mean, std = cohort_statistics(side, self.cohort, top_k)
                statistics.append((mean[index], std[index]))
            found[name] = normalise_scores(raw, *statistics).numpy()
        # The smaller of two sides and their sum: the sides can be exchanged.
        measures = {"score": found["AS-norm"]}
        qualities = [
            {
                "log_seconds": np.log(side.sum_seconds())[index],
                "log_norm": np.log(side.norms())[index],
                "imposter_score": mean.numpy(),
            }
            for (side, index), (mean, _) in zip(sides, statistics, strict=True)
        ]
        for name in qualities[0]:
            one, other = (quality[name] for quality in qualities)
            measures[f"{name}_sum"] = one + other
            measures[f"{name}_least"] = np.minimum(one, other)
        return found, measures

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `backend.safetensors` and `calibration.json`."""
        statistics = {"mean": self.mean.float(), "cohort": self.cohort.float()}
        statistics = {name: value.contiguous() for name, value in statistics.items()}
        save_file(statistics, str(Path(folder) / STATISTICS))
        if self.calibration is not None:
            self.calibration.save(Path(folder) / CALIBRATION)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Backend | None":
        """Reads what `save` has written; None if it has not.

        Raises
        ------
        InputError
            A file is broken.
        """
        path = Path(folder) / STATISTICS
        if not path.exists():
            return None
        try:
            statistics = load_file(str(path))
            mean, cohort = statistics["mean"], statistics["cohort"]
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{path}: can't be read: {error}") from None
        path = Path(folder) / CALIBRATION
        calibration = Calibration.load(path) if path.exists() else None
        return cls(mean, cohort, calibration)


def fit_backend(
    embeddings: Mapping[str, torch.Tensor],
    seconds: Mapping[str, float],
    trials: TrialList,
    training: Mapping[str, torch.Tensor],
    speaker_of: Mapping[str, str],
) -> Backend:
    """Makes a backend of what a training has at its end.

    Arguments
    ---------
    embeddings : mapping of str to torch.Tensor
        Of the validation recordings by path, [emb_dim].
    seconds : mapping of str to float
        Their durations.
    trials : TrialList
        Their trials; those of a recording without an embedding are left out.
    training : mapping of str to torch.Tensor
        Embeddings of training recordings by path, [emb_dim].
    speaker_of : mapping of str to str
        Their speakers.

    Returns
    -------
    Backend
    """
    vectors = torch.stack(list(embeddings.values()))
    mean = vectors.float().mean(dim=0)
    speakers = [speaker_of[path] for path in training]
    _, numbers = np.unique(speakers, return_inverse=True)
    cohort = speaker_means(
        subtract_mean(torch.stack(list(training.values())), mean),
        torch.from_numpy(numbers),
    )
    recordings = Recordings(vectors, np.array([seconds[path] for path in embeddings]))
    kept, rows, columns = trial_rows(list(embeddings), trials)
    return Backend(mean, cohort).fitted(
        recordings, recordings, rows, columns, trials.labels[kept]
    )
