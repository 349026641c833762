"""Turns a folder of recordings into manifests and trial lists.

The folder is `DIR/<speaker>/**/<audio>`, or `DIR/<split>/<speaker>/**/<audio>`. The
first folder below a speaker's is a recording session. See README.md beside this file
for splits and trial lists.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from local_modules.errors import InputError, printable
from local_modules.manifest import check_splits
from local_modules.preparation.lists import own_trial_files
from local_modules.preparation.recordings import Recording, Skipped
from local_modules.preparation.scan import find_audio
from local_modules.preparation.writing import Corpus, Settings, write_corpus

SPLIT_FOLDERS = ("train", "valid", "dev", "test")
LAYOUT = (
    "expected <speaker>/**/<audio>, or train/<speaker>/**/<audio> "
    "and so on for valid or dev, and test"
)


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
        The recordings.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    trials : str, optional
        Trial list of the test split, with paths relative to `data_folder`. Without
        it, `data_folder/trials.txt` is used where it exists.
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
        If a setting, the layout of the folder or a trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, test_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    paths = find_audio(root, LAYOUT)
    lists = own_trial_files(root, trials)
    split_of_folder = _split_folders(root, paths)
    recordings, skipped = _list(paths, split_of_folder)
    _check_folders(recordings, split_of_folder)
    corpus = Corpus(root, LAYOUT, recordings, skipped, lists)
    write_corpus(corpus, save_folder, settings)


def _split_folders(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """The split of each split folder; empty if there are none."""
    folders = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    depth = 2 if folders else 1
    if all(path.count("/") < depth for path in paths):
        raise InputError(
            f"data_folder {root}: holds {len(paths)} audio files, such as "
            f"{printable(paths[0])}, in no speaker folder; {LAYOUT}"
        )
    if not folders:
        return {}
    beside = {path.split("/")[0] for path in paths if "/" in path} - set(folders)
    if beside:
        raise InputError(
            f"data_folder {root}: {printable(min(beside))}/ lies beside "
            f"{folders[0]}/; {LAYOUT}: move it, or rename {folders[0]}/ "
            "if that is a speaker"
        )
    if "train" not in folders:
        raise InputError(
            f"data_folder {root}: has {folders[0]}/ and no train/; {LAYOUT}"
        )
    if {"valid", "dev"} <= set(folders):
        raise InputError(
            f"data_folder {root}: has both valid/ and dev/; keep one of them, "
            "or rename dev/ to test/"
        )
    dev = "valid" if "test" in folders else "test"
    return {name: dev if name == "dev" else name for name in folders}


def _list(
    paths: Sequence[str], split_of_folder: dict[str, str]
) -> tuple[list[Recording], list[Skipped]]:
    """The recordings, with their speakers, splits and sessions."""
    at = 1 if split_of_folder else 0  # where the speaker is in a path
    recordings, skipped = [], []
    for path in paths:
        parts = path.split("/")
        if len(parts) < at + 2:
            skipped.append(Skipped(path, "lies in no speaker folder"))
            continue
        split = split_of_folder[parts[0]] if split_of_folder else "train"
        name = os.path.splitext(path)[0]
        session = parts[at + 1] if len(parts) > at + 2 else None
        recordings.append(Recording(name, path, parts[at], split, session))
    return recordings, skipped


def _check_folders(
    recordings: Sequence[Recording], split_of_folder: dict[str, str]
) -> None:
    """Checks the splits under their folders' names, for the message."""
    of_folder = {f"{folder}/": [] for folder in split_of_folder}
    if of_folder:
        for recording in recordings:
            of_folder[recording.path.split("/")[0] + "/"].append(recording)
    check_splits(of_folder)
