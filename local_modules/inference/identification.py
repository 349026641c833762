"""Who of the enrolled is it, if anybody?"""

from dataclasses import dataclass

import numpy as np
import torch

from local_modules.evaluation.backend import Recordings
from local_modules.inference.verification import Verifier, Voice
from local_modules.inference.voices import VoiceStore


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


def identify(
    verifier: Verifier,
    store: VoiceStore,
    voice: Voice,
    top: int = 5,
    prior: float = 0.5,
) -> Answer:
    """Finds the enrolled voices nearest to a recording by cosine, and weighs those with
    all that the model has.

    Arguments
    ---------
    verifier : Verifier
        The model.
    store : VoiceStore
        Who is enrolled.
    voice : Voice
        The recording.
    top : int
        How many candidates to weigh. Farther ones count as impossible.
    prior : float
        How probable it is beforehand that it is one of the enrolled; each of them is as
        probable as the others.

    Returns
    -------
    Answer
    """
    names, vectors = store.matrix()
    if not names:
        return Answer(None, None if not verifier.is_calibrated else 1.0, [])
    people = sorted(set(names))
    nearest = _nearest(verifier, names, people, vectors, voice)[:top]
    shortlist = [people[number] for number in nearest]
    verdicts = verifier.compare(store.voices(shortlist), voice)
    order = sorted(
        range(len(shortlist)),
        key=lambda n: (
            -(verdicts[n].score if verdicts[n].llr is None else verdicts[n].llr)
        ),
    )
    if not verifier.is_calibrated:
        found = [Candidate(shortlist[n], verdicts[n].score, None, None) for n in order]
        name = found[0].name if verdicts[order[0]].same else None
        return Answer(name, None, found)
    ratios = np.array([verdicts[n].llr for n in order])
    each = np.log(prior / len(people))
    logits = np.append(ratios + each, np.log1p(-prior))
    *shares, nobody = np.exp(logits - np.logaddexp.reduce(logits)).tolist()
    found = [
        Candidate(shortlist[n], verdicts[n].score, verdicts[n].llr, share)
        for n, share in zip(order, shares, strict=True)
    ]
    return Answer(found[0].name if shares[0] > nobody else None, nobody, found)


def _nearest(verifier, names, people, vectors, voice) -> np.ndarray:
    """Numbers of the people, the one with the highest cosine first."""
    number = {person: index for index, person in enumerate(people)}
    members = [[] for _ in people]
    for row, name in enumerate(names):
        members[number[name]].append(row)
    mean = verifier.backend.mean if verifier.backend is not None else None
    seconds = np.zeros(len(vectors))
    enrolled = Recordings(torch.from_numpy(vectors.copy()), seconds, members)
    tested = Recordings(torch.from_numpy(voice.vector[None].copy()), seconds[:1])
    scores = enrolled.vectors(mean) @ tested.vectors(mean)[0]
    return scores.argsort(descending=True).numpy()
