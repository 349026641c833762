"""Uses SpeechBrain manifests that another recipe has written.

See README.md beside this file for the columns and for which file is which split.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from sys import intern

from local_modules.errors import InputError
from local_modules.preparation.lists import own_trial_files
from local_modules.preparation.recordings import Recording, Samples, finite
from local_modules.preparation.scan import path_from
from local_modules.preparation.writing import Corpus, Settings, write_corpus

LAYOUT = "expected train.csv, and maybe valid.csv or dev.csv, and test.csv"
# SpeechBrain's VoxCeleb recipe has its test recordings in enrol.csv and test.csv.
MANIFESTS = {
    "train.csv": "train",
    "valid.csv": "valid",
    "dev.csv": "valid",
    "test.csv": "test",
    "enrol.csv": "test",
}
COLUMNS = ("ID", "wav", "spk_id")
VARIABLE = re.compile(r"^(\$\w+|\$?\{\w+\})/")


def prepare(
    data_folder: str,
    save_folder: str,
    csv_folder: str | None = None,
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
        The audio: what `$data_root`, or another variable, stands for in the manifests.
    save_folder : str
        Where to write.
    csv_folder : str, optional
        Where the manifests are, if not in `data_folder`.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    trials : str, optional
        Trial list of the test split, with the manifests' IDs or with paths relative to
        `data_folder`. Without it, `trials.txt` beside the manifests is used where it
        exists.
    valid_share, test_share : float
        Share of the training speakers to hold out for a split that has no manifest.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting, a manifest or a trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, test_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    folder = root if csv_folder is None else Path(csv_folder)
    if not (folder / "train.csv").is_file():
        raise InputError(f"{folder}: has no train.csv; {LAYOUT}")
    if (folder / "valid.csv").is_file() and (folder / "dev.csv").is_file():
        raise InputError(f"{folder}: has both valid.csv and dev.csv; keep one of them")
    rows = (
        recording
        for name, split in MANIFESTS.items()
        if (folder / name).is_file()
        for recording in _read_manifest(root, folder / name, split)
    )
    recordings = list(dict.fromkeys(rows))  # enrol.csv and test.csv may share some
    lists = own_trial_files(folder, trials, id_of=str)
    corpus = Corpus(root, LAYOUT, recordings, lists=lists)
    write_corpus(corpus, save_folder, settings)


def _read_manifest(root: Path, path: Path, split: str) -> Iterator[Recording]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path}: has no column {', '.join(missing)}; a manifest has "
                    "ID,duration,wav,start,stop,spk_id"
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if not all(row[column] for column in COLUMNS):
                    raise InputError(f"{where}: lacks ID, wav or spk_id")
                yield Recording(
                    row["ID"],
                    path_from(root, VARIABLE.sub("", row["wav"])),
                    intern(row["spk_id"]),
                    split,
                    row.get("session") or None,
                    _stretch(row, where),
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a manifest: {error}") from None


def _stretch(row: dict[str, str], where: str) -> Samples | None:
    """The samples of a row; None for the whole file, if it does not say."""
    start, stop = row.get("start"), row.get("stop")
    if not start and not stop:
        return None
    try:
        # Some recipes write samples as 48000.0.
        return Samples(finite(start), finite(stop))
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: start {start!r} and stop {stop!r} must be samples, or both empty"
        ) from None
