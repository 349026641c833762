"""Who of the enrolled is it, if anybody?"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from local_modules.errors import InputError
from local_modules.inference.search import NearestVectors
from local_modules.inference.verification import Verifier, Voice
from local_modules.inference.voices import VoiceStore
from local_modules.scoring import speaker_means

N_WEIGHED = 50  # or more, if more are to be named


@dataclass(frozen=True)
class Candidate:
    """An enrolled voice that comes near.

    Arguments
    ---------
    name : str
        Whose.
    score : float
        Cosine, from -1 to 1.
    llr : float | None
        Log-likelihood ratio, as in `Verdict`.
    probability : float | None
        That it is this one, of all enrolled and nobody; None without a calibration.
    """

    name: str
    score: float
    llr: float | None
    probability: float | None


@dataclass(frozen=True)
class Answer:
    """Who it is.

    Arguments
    ---------
    name : str | None
        The likeliest; None if nobody enrolled is.
    nobody : float | None
        Probability that it is none of the enrolled; None without a calibration.
    candidates : list of Candidate
        The nearest, the likeliest first.
    """

    name: str | None
    nobody: float | None
    candidates: list[Candidate]


class _Enrolled(NamedTuple):
    """Who is enrolled, ready to be searched."""

    source: tuple[Path, int]  # the file, and its state then
    people: list[str]
    nearest: NearestVectors


class Identifier:
    """Tells whose voice it is. What it has made of a file of voices is kept until that
    changes, so that a question to many voices costs one search.

    Arguments
    ---------
    verifier : Verifier
        The model.
    """

    def __init__(self, verifier: Verifier):
        self.verifier = verifier
        self._enrolled: _Enrolled | None = None

    def identify(
        self, store: VoiceStore, voice: Voice, top: int = 5, prior: float = 0.5
    ) -> Answer:
        """Finds the enrolled voices nearest to a recording by cosine, and weighs those
        with all that the model has.

        Arguments
        ---------
        store : VoiceStore
            Who is enrolled.
        voice : Voice
            The recording.
        top : int
            How many candidates to name. More are weighed, `N_WEIGHED`, so that the
            probabilities don't depend on it; farther ones count as impossible.
        prior : float
            Prior probability that it is one of the enrolled; each of them
            is as probable as the others.

        Returns
        -------
        Answer
        """
        verifier, enrolled = self.verifier, self._searchable(store)
        people = enrolled.people
        if not people:
            return Answer(None, None if not verifier.is_calibrated else 1.0, [])
        vector = verifier.directions(voice.vector[np.newaxis]).numpy()[0]
        nearest = enrolled.nearest(vector, max(top, N_WEIGHED))
        shortlist = [people[number] for number in nearest]
        try:
            recordings = store.voices(shortlist)
        except InputError:  # one of them was removed in the meantime
            return self.identify(store, voice, top, prior)
        verdicts = verifier.compare(recordings, voice)
        order = sorted(
            range(len(shortlist)),
            key=lambda n: (
                -(verdicts[n].score if verdicts[n].llr is None else verdicts[n].llr)
            ),
        )
        if not verifier.is_calibrated:
            found = [
                Candidate(shortlist[n], verdicts[n].score, None, None) for n in order
            ]
            name = found[0].name if verdicts[order[0]].same else None
            return Answer(name, None, found[:top])
        ratios = np.array([verdicts[n].llr for n in order])
        each = np.log(prior / len(people))
        logits = np.append(ratios + each, np.log1p(-prior))
        *shares, nobody = softmax(logits).tolist()
        found = [
            Candidate(shortlist[n], verdicts[n].score, verdicts[n].llr, share)
            for n, share in zip(order, shares, strict=True)
        ]
        name = found[0].name if shares[0] > nobody else None
        return Answer(name, nobody, found[:top])

    def _searchable(self, store: VoiceStore) -> _Enrolled:
        """Who is enrolled now."""
        kept = self._enrolled  # once: another thread may exchange it
        source = store.path, store.state()
        if kept is None or kept.source != source:
            # A change from here on makes the state another one than was read above.
            names, vectors = store.matrix()
            people = sorted(set(names))
            number = {person: index for index, person in enumerate(people)}
            numbers = torch.tensor([number[name] for name in names], dtype=torch.int64)
            if people:
                vectors = self.verifier.directions(vectors)
                vectors = speaker_means(vectors, numbers).numpy()
            kept = self._enrolled = _Enrolled(source, people, NearestVectors(vectors))
        return kept
