"""Speaker verification of recordings with a trained model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from local_modules.corpus import SYNTHETIC
from local_modules.errors import InputError
from local_modules.evaluation.backend import (
    CALIBRATED,
    Recordings,
    cosines,
)
from local_modules.inference.extraction import windows_of
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.speech import MODEL_RATES, Quality, read_speech
from local_modules.metrics import bayes_threshold
from local_modules.scoring import subtract_mean

WINDOW_SECONDS = 20.0
WINDOWS_AT_A_TIME = 6
MOST_SURE = 0.999  # no calibration is good enough to claim more
THRESHOLD = 0.25  # on the cosine: SpeechBrain's, for models without one


@dataclass(frozen=True)
class Voice:
    """The embedding of a recording's speech.

    Arguments
    ---------
    vector : numpy.ndarray
        The embedding, float32, [emb_dim].
    quality : Quality
        Measurements of the recording.
    """

    vector: np.ndarray
    quality: Quality


@dataclass(frozen=True)
class Verdict:
    """The comparison of one speaker's recordings with another recording.

    Arguments
    ---------
    score : float
        Cosine, from -1 to 1.
    llr : float | None
        Log-likelihood ratio of one speaker against two, natural logarithm; None for a
        model without a calibration.
    probability : float | None
        That it is the same speaker, from the ratio and the prior.
    same : bool
        The decision: by the probability, or without a calibration by the model's
        threshold on the cosine.
    """

    score: float
    llr: float | None
    probability: float | None
    same: bool


class ListeningModel(SpeakerModel):
    """A model that embeds only the speech of a recording, without pauses.

    Raises
    ------
    InputError
        As `SpeakerModel`; or speech detection doesn't support its sample rate.
    """

    def __init__(self, source: str, device: str = "cpu", trust: bool = False):
        super().__init__(source, device, trust)
        if self.sample_rate not in MODEL_RATES:
            *rates, last = MODEL_RATES
            raise InputError(
                f"{source}: is a model for {self.sample_rate} Hz; speech detection "
                f"needs {', '.join(map(str, rates))} or {last} Hz"
            )
        # Its embeddings differ from those of whole files.
        self.fingerprint += ":speech"

    def read(self, path: Path) -> torch.Tensor:
        """The waveform of a recording's speech, mono and at the model's rate, [time].

        Raises
        ------
        InputError
            It can't be read, or holds no speech.
        """
        return read_speech(path, self.sample_rate).samples


class Verifier:
    """A trained model and its backend for scoring, if it has one.

    Arguments
    ---------
    source : str
        A folder, or a name on the Hugging Face hub.
    device : str
        Where to compute.
    trust : bool
        Loads it unchecked; see `SpeakerModel`.

    Raises
    ------
    InputError
        The model does not exist, can't be loaded or is not safe to load; or its
        threshold is not a finite number.

    Example
    -------
    >>> verifier = Verifier(getfixture("trained_run") / "model")
    >>> one, other, *_ = sorted(getfixture("voices_folder").glob("test/*/0.wav"))
    >>> verdict = verifier.verify(one, one)
    >>> round(verdict.score, 3), verdict.same
    (1.0, True)
    >>> verifier.verify(one, other).llr < verdict.llr
    True
    """

    def __init__(
        self, source: str | os.PathLike, device: str = "cpu", trust: bool = False
    ):
        self.model = ListeningModel(str(source), device, trust)
        self.backend = self.model.backend
        hparams = self.model.classifier.hparams
        self.threshold = getattr(hparams, "threshold", THRESHOLD)
        if type(self.threshold) not in (int, float) or not isfinite(self.threshold):
            raise InputError(
                f"{source}: its threshold is {self.threshold!r}; it has to be a finite "
                "number"
            )

    @property
    def warning(self) -> str | None:
        """Why its answers mean nothing, as a sentence; None if they may."""
        if getattr(self.model.classifier.hparams, "corpus", None) not in SYNTHETIC:
            return None
        return (
            "This model was trained on synthetic voices: what it says about people "
            "means nothing. Train one on recordings of people, see README.md, Your own "
            "recordings."
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether scores become log-likelihood ratios."""
        return self.backend is not None and self.backend.calibration is not None

    def directions(self, vectors: np.ndarray) -> torch.Tensor:
        """Embeddings [count, emb_dim] as the search and the map compare them: with the
        mean of the validation recordings subtracted, if the model has it, and of length
        one. For the `score` of a `Verdict`, no mean is subtracted."""
        mean = None if self.backend is None else self.backend.mean
        return subtract_mean(torch.from_numpy(vectors), mean)

    def listen(self, path: str | os.PathLike) -> Voice:
        """Embeds the speech of a recording, a long one in windows.

        Raises
        ------
        InputError
            It can't be read, holds no speech, or has samples too large to embed.
        """
        speech = read_speech(path, self.model.sample_rate)
        windows = windows_of(speech.samples, self.model.sample_rate, WINDOW_SECONDS)
        vectors = [
            self.model.embed(windows[start : start + WINDOWS_AT_A_TIME])
            for start in range(0, len(windows), WINDOWS_AT_A_TIME)
        ]
        vector = torch.cat(vectors).mean(dim=0)
        if not torch.isfinite(vector).all():
            raise InputError(f"{path}: holds samples too large for an embedding")
        return Voice(vector.numpy(), speech.quality)

    def verify(
        self, one: str | os.PathLike, other: str | os.PathLike, prior: float = 0.5
    ) -> Verdict:
        """Compares two recordings; see `compare`."""
        (verdict,) = self.compare([[self.listen(one)]], self.listen(other), prior)
        return verdict

    def compare(
        self,
        enrolled: Sequence[Sequence[Voice]],
        tested: Voice,
        prior: float = 0.5,
    ) -> list[Verdict]:
        """Compares a recording with each of several speakers.

        Arguments
        ---------
        enrolled : sequence of sequence of Voice
            Recordings of each speaker.
        tested : Voice
            The recording.
        prior : float
            Prior probability of the same speaker.

        Returns
        -------
        list of Verdict
            One for each speaker.
        """
        members = np.split(
            np.arange(sum(map(len, enrolled))), np.cumsum([len(v) for v in enrolled])
        )[:-1]
        sides = (
            _recordings([voice for voices in enrolled for voice in voices], members),
            _recordings([tested]),
        )
        rows = np.arange(len(enrolled)), np.zeros(len(enrolled), dtype=np.int64)
        scores = cosines(*sides, *rows).tolist()
        if not self.is_calibrated:
            return [Verdict(s, None, None, s >= self.threshold) for s in scores]
        ratios = self.backend.scores(*sides, *rows)[CALIBRATED].tolist()
        threshold = bayes_threshold(prior)
        return [
            Verdict(score, llr, float(expit(llr - threshold)), llr >= threshold)
            for score, llr in zip(scores, ratios, strict=True)
        ]


def certainty(probability: float) -> str:
    """How sure a decision is, in words, given its probability or its complement.

    Example
    -------
    >>> certainty(0.25), certainty(0.99999)
    ('75.0 % sure', 'more than 99.9 % sure')
    """
    sure = max(probability, 1 - probability)
    if sure < MOST_SURE:
        return f"{100 * sure:.1f} % sure"
    return f"more than {100 * MOST_SURE:.1f} % sure"


def _recordings(voices, members=None) -> Recordings:
    return Recordings(
        torch.from_numpy(np.stack([voice.vector for voice in voices])),
        np.array([voice.quality.speech_seconds for voice in voices]),
        members,
    )
