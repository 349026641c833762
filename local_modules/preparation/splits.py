"""Which speakers are trained on, and which are held out."""

import hashlib
from collections.abc import Collection, Iterable, Sequence

from speechbrain.utils.logger import get_logger

from local_modules.manifest import Utterance

logger = get_logger(__name__)

Splits = dict[str, list[Utterance]]


def speakers_of(utterances: Iterable[Utterance]) -> set[str]:
    """The speakers of utterances."""
    return {u.speaker for u in utterances}


def with_two(of_speakers: Iterable[tuple[str, str]]) -> set[str]:
    """The speakers who are paired with at least two different items.

    Example
    -------
    >>> with_two([("ann", "monday"), ("bob", "monday"), ("ann", "tuesday")])
    {'ann'}
    """
    first = {}
    return {
        speaker for speaker, one in of_speakers if first.setdefault(speaker, one) != one
    }


def draw_speakers(
    utterances: Sequence[Utterance], preferred: Collection[str], n: int, seed: int
) -> set[str]:
    """Draws speakers to hold out: the preferred first, then those with two files,
    because others give no target trial.

    Each speaker has its own random rank, so adding a speaker to the corpus does not
    reorder the others.

    Arguments
    ---------
    utterances : sequence of Utterance
        Those of all speakers to draw from.
    preferred : collection of str
        Speakers who were recorded in two sessions.
    n : int
        How many speakers to draw.
    seed : int
        Seed of the draw.

    Returns
    -------
    set of str
        The speakers.
    """
    with_two_files = with_two((u.speaker, u.path) for u in utterances)

    def rank(speaker: str) -> tuple[bool, bool, bytes]:
        digest = hashlib.sha256(f"{seed}:{speaker}".encode()).digest()
        return speaker not in preferred, speaker not in with_two_files, digest

    return set(sorted(speakers_of(utterances), key=rank)[:n])


def remove_speakers(splits: Splits, split: str) -> None:
    """Removes the speakers of another split from `train`, and logs their number.

    Arguments
    ---------
    splits : dict
        Changed in place.
    split : str
        The other split.
    """
    train, others = splits["train"], speakers_of(splits[split])
    splits["train"] = [u for u in train if u.speaker not in others]
    logger.info(
        "train: leaves %d speakers, with %d utterances, to %s",
        len(others & speakers_of(train)),
        len(train) - len(splits["train"]),
        split,
    )


def longest_of_each_file(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The longest utterance of each file: trials name files, not utterances.

    Arguments
    ---------
    utterances : sequence of Utterance
        Those of a split with trials.

    Returns
    -------
    list of Utterance
        In the order given.
    """
    longest: dict[str, Utterance] = {}
    for utterance in utterances:
        other = longest.setdefault(utterance.path, utterance)
        if utterance.duration > other.duration:
            longest[utterance.path] = utterance
    return [u for u in utterances if longest[u.path] is u]
