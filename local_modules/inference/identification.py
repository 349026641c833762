"""Open-set identification: which enrolled speaker is it, if any?"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from local_modules.errors import InputError
from local_modules.inference.nearest import NearestVectors
from local_modules.inference.verification import Verifier, Voice
from local_modules.inference.voices import VoiceStore
from local_modules.scoring import speaker_means

N_WEIGHED = 50  # candidates that are scored; more if more are requested


@dataclass(frozen=True)
class Candidate:
    """An enrolled voice near to a recording.

    Arguments
    ---------
    name : str
        The speaker's name.
    score : float
        Cosine, from -1 to 1.
    llr : float | None
        Log-likelihood ratio, as in `Verdict`.
    probability : float | None
        That it is this speaker, and not another one or none of the enrolled; None
        without a calibration.
    """

    name: str
    score: float
    llr: float | None
    probability: float | None


@dataclass(frozen=True)
class Answer:
    """The result of an identification.

    Arguments
    ---------
    name : str | None
        The speaker; None for none of the enrolled.
    nobody : float | None
        Probability that it is none of the enrolled; None without a calibration.
    candidates : list of Candidate
        The nearest voices, likeliest first.
    """

    name: str | None
    nobody: float | None
    candidates: list[Candidate]


class _Enrolled(NamedTuple):
    """The enrolled speakers, ready to be searched."""

    source: tuple[Path, int]  # the file, and its state when read
    people: list[str]
    nearest: NearestVectors


class Identifier:
    """Identifies the speaker of a recording. The search index of a voices file is kept
    until the file changes, so a query against many voices costs one search.

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
        """Finds the enrolled voices nearest to a recording by cosine, and scores those
        with the model's backend, or by the cosine if it has no calibration.

        Arguments
        ---------
        store : VoiceStore
            The enrolled voices.
        voice : Voice
            The recording.
        top : int
            How many candidates to return. At least `N_WEIGHED` are scored, so that
            the probabilities don't depend on it; all others count as impossible.
        prior : float
            Prior probability that it is one of the enrolled, all equally likely.

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
        """The search index of the voices enrolled now."""
        kept = self._enrolled  # read once: another thread may replace it
        source = store.path, store.state()
        if kept is None or kept.source != source:
            # A change from here on alters the state, so the next call reads again.
            names, vectors = store.matrix()
            people = sorted(set(names))
            number = {person: index for index, person in enumerate(people)}
            numbers = torch.tensor([number[name] for name in names], dtype=torch.int64)
            if people:
                vectors = self.verifier.directions(vectors)
                vectors = speaker_means(vectors, numbers).numpy()
            kept = self._enrolled = _Enrolled(source, people, NearestVectors(vectors))
        return kept
