"""Turns Kaldi data folders into manifests and trial lists.

The folder is `DIR/{wav.scp,utt2spk}`, or `DIR/{train,valid,dev,test}/` with such files.
See README.md beside this file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from sys import intern

from local_modules.errors import InputError
from local_modules.preparation.lists import own_trial_files
from local_modules.preparation.recordings import Recording, Seconds, Skipped, finite
from local_modules.preparation.scan import check_folder, path_from
from local_modules.preparation.writing import Corpus, Settings, write_corpus

LAYOUT = "expected wav.scp and utt2spk, or train/wav.scp and train/utt2spk and so on"
SPLIT_FOLDERS = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}
ARCHIVE = re.compile(r"\.ark(:\d+)?$")


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
    trials: str | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    min_seconds: float = 0.5,
    max_bad_share: float = 0.01,
    skip_prep: bool = False,
) -> None:
    """Writes `{train,valid,test}.csv` and `{valid,test}_trials.txt`.

    Returns immediately if they were written from the same recordings with the same
    settings.

    Arguments
    ---------
    data_folder : str
        A folder with `wav.scp`, `utt2spk` and maybe `segments` and `utt2session`, or
        with folders `train`, `valid` or `dev`, and `test` of such files.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    trials : str, optional
        Trial list of the test split, `enrol_utterance test_utterance target`. Without
        it, `trials` in the test folder or in `data_folder` is used where it exists.
    valid_share, test_share : float
        Share of the training speakers to hold out for a split that has no folder.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting, a file of the folder or a trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, test_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    check_folder(root, LAYOUT)
    folders = {"train": root}
    found = [n for n in SPLIT_FOLDERS if (root / n / "wav.scp").is_file()]
    if not (root / "wav.scp").is_file():
        if {"valid", "dev"} <= set(found):
            raise InputError(
                f"data_folder {root}: has both valid/ and dev/; keep one of them"
            )
        folders = {SPLIT_FOLDERS[name]: root / name for name in found}
        if "train" not in folders:
            raise InputError(
                f"data_folder {root}: has neither wav.scp nor train/wav.scp; {LAYOUT}"
            )
    elif found:
        raise InputError(
            f"data_folder {root}: has wav.scp beside {found[0]}/wav.scp; {LAYOUT}: "
            "move one of them"
        )
    recordings, skipped = [], []
    for split, folder in folders.items():
        for one in _read_folder(root, folder, split):
            (skipped if isinstance(one, Skipped) else recordings).append(one)
    lists = own_trial_files(root, trials, ["test/trials", "trials"], id_of=str)
    corpus = Corpus(root, LAYOUT, recordings, skipped, lists)
    write_corpus(corpus, save_folder, settings)


def _read_folder(root: Path, folder: Path, split: str) -> Iterator[Recording | Skipped]:
    path_of = {}
    for where, name, value in _read(folder / "wav.scp"):
        if value.startswith("|") or value.endswith("|"):
            raise InputError(
                f"{where}: {name} is a command, {value}; only files are read: "
                "run the command and name the file that it writes"
            )
        if ARCHIVE.search(value):
            raise InputError(
                f"{where}: {name} lies in an archive, {value}; only files of one "
                "recording each are read"
            )
        path_of[name] = path_from(root, value)
    speaker_of = _read_names(folder / "utt2spk")
    sessions = folder / "utt2session"
    session_of = _read_names(sessions) if sessions.is_file() else None
    segments = folder / "segments"
    if segments.is_file():
        listed, utterances = segments, _read_segments(segments)
    else:
        listed = folder / "wav.scp"
        utterances = ((name, name, None) for name in path_of)
    unheard = set(speaker_of)
    for utterance, recording, stretch in utterances:
        unheard.discard(utterance)
        if recording not in path_of:
            yield Skipped(recording, f"is in {segments} and not in wav.scp")
        elif utterance not in speaker_of:
            reason = f"has no speaker: {utterance} is not in {folder / 'utt2spk'}"
            yield Skipped(path_of[recording], reason)
        elif session_of is not None and utterance not in session_of:
            reason = f"has no session: {utterance} is not in {sessions}"
            yield Skipped(path_of[recording], reason)
        else:
            speaker = speaker_of[utterance]
            session = session_of[utterance] if session_of is not None else None
            path = path_of[recording]
            yield Recording(utterance, path, speaker, split, session, stretch)
    for utterance in sorted(unheard):
        yield Skipped(utterance, f"is in {folder / 'utt2spk'} and not in {listed}")


def _read_names(path: Path) -> dict[str, str]:
    """The speaker, or the session, of each utterance."""
    return {utterance: intern(name) for _, utterance, name in _read(path)}


def _read_segments(path: Path) -> Iterator[tuple[str, str, Seconds]]:
    for where, utterance, value in _read(path):
        try:
            recording, start, stop = value.split()
            yield utterance, recording, Seconds(finite(start), finite(stop))
        except ValueError:
            raise InputError(
                f"{where}: must be `utterance recording start end`, in seconds"
            ) from None


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields the location of each line, its first column and the rest."""
    seen = set()
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                columns = line.strip().split(maxsplit=1)
                if not columns:
                    continue
                if len(columns) == 1:
                    raise InputError(f"{where}: {columns[0]} has no value")
                if columns[0] in seen:
                    raise InputError(f"{where}: repeats {columns[0]}")
                seen.add(columns[0])
                yield where, *columns
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
