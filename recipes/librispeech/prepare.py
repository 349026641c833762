"""Turns LibriSpeech into manifests and trial lists.

See README.md beside this file for the layout.
"""

import re
from pathlib import Path
from sys import intern

from local_modules.errors import InputError
from local_modules.preparation.recordings import Recording, Skipped
from local_modules.preparation.scan import find_audio
from local_modules.preparation.writing import Corpus, Settings, write_corpus

LAYOUT = (
    "expected LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac, and maybe "
    "other train-*, dev-clean and test-clean"
)
UTTERANCE = re.compile(
    r"(?:.*/)?((?:train|dev|test)-[a-z]+(?:-\d+)?)/(\d+)/(\d+)/(\2-\3-\d+)\.\w+"
)
SPLITS = {"dev-clean": "valid", "dev-clean-2": "valid", "test-clean": "test"}


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
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
        The folder `LibriSpeech`, or the one that holds it.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    valid_share, test_share : float
        Share of the training speakers to hold out where there is no `dev-clean` or no
        `test-clean`.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting or the layout of the folder is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, test_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    recordings, skipped = [], []
    for path in find_audio(root, LAYOUT):
        match = UTTERANCE.fullmatch(path)
        if match is None:
            skipped.append(Skipped(path, "is not named train-*/1/2/1-2-0003.flac"))
            continue
        subset, speaker, chapter, name = match.groups()
        split = "train" if subset.startswith("train-") else SPLITS.get(subset)
        if split is not None:
            recordings.append(
                Recording(name, path, intern(speaker), split, intern(chapter))
            )
    if not any(recording.split == "train" for recording in recordings):
        raise InputError(f"data_folder {root}: holds no train-*/; {LAYOUT}")
    write_corpus(Corpus(root, LAYOUT, recordings, skipped), save_folder, settings)
