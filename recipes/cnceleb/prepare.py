"""Turns CN-Celeb1, and CN-Celeb2 if present, into manifests and trial lists.

See README.md beside this file for the layout.
"""

import os
from pathlib import Path
from sys import intern

from local_modules.errors import InputError
from local_modules.preparation.lists import TrialFile, find_trial_file
from local_modules.preparation.recordings import Recording, Skipped
from local_modules.preparation.scan import find_audio
from local_modules.preparation.writing import Corpus, Settings, write_corpus

LAYOUT = (
    "expected CN-Celeb_flac/ with data/, dev/dev.lst and eval/, or that folder itself, "
    "and maybe CN-Celeb2_flac/ with data/"
)
TRIALS = "eval/lists/trials.lst"


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
    trials: str | None = None,
    valid_share: float = 0.05,
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
        The folder that CN-Celeb1 and maybe CN-Celeb2 are unpacked in.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out for validation and of the trials drawn.
    trials : str, optional
        A list to use instead of `eval/lists/trials.lst`, in the same format.
    valid_share : float
        Share of the training speakers to hold out for validation.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting, the layout of the folder or the trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, valid_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    paths = find_audio(root, LAYOUT)
    lists = list(root.glob(TRIALS)) + list(root.glob(f"*/{TRIALS}"))
    if len(lists) != 1:
        raise InputError(
            f"data_folder {root}: holds {len(lists)} files {TRIALS}; {LAYOUT}"
        )
    home = lists[0].parents[2]
    developers = _read_speakers(home / "dev" / "dev.lst")
    recordings, skipped = [], []
    for path in paths:
        parts = path.split("/")
        name = os.path.splitext(parts[-1])[0]
        match parts[-3:]:
            case [*_, "data", speaker, _]:
                in_1 = (root / path).parents[1] == home / "data"
                if in_1 and speaker not in developers:
                    continue  # the raw recordings of eval/
                session = "-".join(name.split("-")[:2])
                utterance, split = f"{speaker}/{name}", "train"
            case ["eval", "enroll" | "test" as side, _]:
                speaker, session = name.split("-")[0], None
                utterance, split = f"{side}/{name}", "test"
            case _:
                skipped.append(Skipped(path, "lies in none of CN-Celeb's folders"))
                continue
        recordings.append(Recording(utterance, path, intern(speaker), split, session))
    own_list = find_trial_file(root, trials, [lists[0].relative_to(root).as_posix()])
    corpus = Corpus(
        root, LAYOUT, recordings, skipped, {"test": TrialFile(own_list, _id_of_name)}
    )
    write_corpus(corpus, save_folder, settings)


def _read_speakers(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; {LAYOUT}") from None


def _id_of_name(name: str) -> str:
    """The ID for `id00800-enroll` or `test/id00800-singing-01-005.wav` (a .flac)."""
    return os.path.splitext(name)[0] if "/" in name else f"enroll/{name}"
