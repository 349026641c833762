"""SpeechBrain CSV manifests: the utterances of a split, and their speakers."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern

from local_modules.errors import InputError
from local_modules.files import replacing

COLUMNS = ("ID", "duration", "wav", "start", "stop", "spk_id")
DATA_ROOT = "$data_root/"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording, or one stretch of it, of one speaker.

    Arguments
    ---------
    id : str
        Unique name of the utterance.
    duration : float
        Seconds.
    path : str
        POSIX path of the audio file, relative to the data folder.
    start, stop : int
        First sample and the one after the last, at the file's own rate.
    speaker : str
        Name of the speaker.
    """

    id: str
    duration: float
    path: str
    start: int
    stop: int
    speaker: str


def write_manifest(path: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """Writes a manifest atomically, sorted by ID.

    Arguments
    ---------
    path : str or os.PathLike
        The CSV to write.
    utterances : iterable of Utterance
        Its rows, in any order.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> write_manifest(path, [Utterance("ann/1", 1.5, "ann/1.wav", 0, 24000, "ann")])
    >>> print(path.read_text().strip())
    ID,duration,wav,start,stop,spk_id
    ann/1,1.5,$data_root/ann/1.wav,0,24000,ann
    """
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for u in sorted(utterances, key=lambda u: u.id):
            wav = DATA_ROOT + u.path
            writer.writerow((u.id, u.duration, wav, u.start, u.stop, u.speaker))


def read_manifest(path: str | os.PathLike) -> list[Utterance]:
    """Reads a manifest.

    Arguments
    ---------
    path : str or os.PathLike
        The CSV to read.

    Returns
    -------
    list of Utterance
        Its rows, in the order of the file.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or has a row that is malformed
        or repeats an ID.
    """
    utterances: dict[str, Utterance] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path}: has no column {', '.join(missing)}; "
                    f"a manifest has {','.join(COLUMNS)}"
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                utterance = _parse_row(row, where)
                if utterance.id in utterances:
                    raise InputError(f"{where}: repeats ID {utterance.id}")
                utterances[utterance.id] = utterance
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a manifest: {error}") from None
    return list(utterances.values())


def _parse_row(row: Mapping[str, str], where: str) -> Utterance:
    wav = row["wav"] or ""
    if not wav.startswith(DATA_ROOT):
        raise InputError(f"{where}: wav is {wav!r}; it must begin with {DATA_ROOT}")
    try:
        return Utterance(
            id=row["ID"],
            duration=float(row["duration"]),
            path=wav.removeprefix(DATA_ROOT),
            start=int(row["start"]),
            stop=int(row["stop"]),
            speaker=intern(row["spk_id"]),  # one string per speaker
        )
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: duration {row['duration']!r}, start {row['start']!r}, "
            f"stop {row['stop']!r} must be seconds, samples, samples"
        ) from None


def check_splits(splits: Mapping[str, Iterable[Utterance]]) -> None:
    """Checks that the splits can be used for training, validation and testing.

    Arguments
    ---------
    splits : mapping of str to iterable of Utterance
        The utterances of each split, by its name.

    Raises
    ------
    InputError
        If a split is empty or has fewer than two speakers (nothing to tell apart),
        or if two splits share a speaker (the error rate would be measured on a
        voice that was trained on).

    Example
    -------
    >>> ann = Utterance("ann/1", 1.5, "ann/1.wav", 0, 24000, "ann")
    >>> check_splits({"train": [ann]})
    Traceback (most recent call last):
    ...
    local_modules.errors.InputError: train has one speaker, ann; a split needs two
    """
    home: dict[str, str] = {}
    for split, utterances in splits.items():
        speakers = sorted({u.speaker for u in utterances})
        if not speakers:
            raise InputError(f"{split} has no utterances; a split needs two speakers")
        if len(speakers) == 1:
            raise InputError(
                f"{split} has one speaker, {speakers[0]}; a split needs two"
            )
        for speaker in speakers:
            if speaker in home:
                raise InputError(
                    f"speaker {speaker} is in both {home[speaker]} and {split}; "
                    "the splits must not share a speaker"
                )
            home[speaker] = split


def spread_utterances(speaker_of: Mapping[str, str], n: int) -> set[str]:
    """Some utterances of every speaker, evenly spaced among those sorted by ID:
    utterances of one session often have neighbouring IDs.

    Arguments
    ---------
    speaker_of : mapping of str to str
        The speaker of each utterance, by its ID.
    n : int
        How many per speaker, at most.

    Returns
    -------
    set of str
        IDs.

    Example
    -------
    >>> speaker_of = dict.fromkeys(["a/1", "a/2", "a/3", "a/4"], "a") | {"b/1": "b"}
    >>> sorted(spread_utterances(speaker_of, 2))
    ['a/1', 'a/3', 'b/1']
    """
    of_speaker = defaultdict(list)
    for utterance in sorted(speaker_of):
        of_speaker[speaker_of[utterance]].append(utterance)
    return {
        utterances[i * len(utterances) // n]
        for utterances in of_speaker.values()
        for i in range(n)
    }
