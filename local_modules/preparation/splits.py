"""Who is trained on, and who is held out."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from speechbrain.utils.logger import get_logger

from local_modules.manifest import Utterance

logger = get_logger(__name__)

Splits = dict[str, list[Utterance]]


def speakers_of(utterances: Iterable[Utterance]) -> set[str]:
    """Whose the utterances are."""
    return {u.speaker for u in utterances}


def draw_speakers(utterances: Sequence[Utterance], n: int, seed: int) -> set[str]:
    """Draws speakers to hold out, those with two utterances first: others give no
    target trial.

    Each speaker has its own random rank, so one more speaker in the corpus does not
    redraw the rest.

    Arguments
    ---------
    utterances : sequence of Utterance
        Those of all speakers to draw from.
    n : int
        How many of them to draw.
    seed : int
        Seed of the draw.

    Returns
    -------
    set of str
        The speakers.
    """
    counts = Counter(u.speaker for u in utterances)

    def rank(speaker: str) -> tuple[bool, bytes]:
        digest = hashlib.sha256(f"{seed}:{speaker}".encode()).digest()
        return counts[speaker] < 2, digest

    return set(sorted(counts, key=rank)[:n])


def remove_speakers(splits: Splits, split: str) -> None:
    """Takes whoever is in another split out of `train`, and says how many that are.

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
        "train: %d %s speakers removed, with %d utterances",
        len(others & speakers_of(train)),
        split,
        len(train) - len(splits["train"]),
    )


def longest_of_each_file(utterances: Sequence[Utterance]) -> list[Utterance]:
    """One utterance of each file. Trials name files, so they can't tell two apart.

    Arguments
    ---------
    utterances : sequence of Utterance
        Those of a split that is verified on.

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
