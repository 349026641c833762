"""A corpus as a run sees it: three manifests and two trial lists."""

import importlib
import inspect
import json
import os
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechbrain.utils.logger import get_logger

import recipes
from local_modules.errors import InputError
from local_modules.files import replacing, sha256
from local_modules.manifest import Utterance, check_splits, read_manifest
from local_modules.trials import TrialList, read_trials

logger = get_logger(__name__)

SEARCHED = ("train.csv", "valid.csv", "valid_trials.txt")
TRAINED = (*SEARCHED, "test.csv", "test_trials.txt")
NOTED = "corpus.json"
SYNTHETIC = ("demo",)  # corpora of voices that are no people's
N_LOOKED_FOR = 100  # recordings; a few may be gone


def prepare_corpus(
    settings: Mapping, begun_with: Mapping[str, str] | None = None
) -> None:
    """Makes the manifests and trial lists of a corpus with the `prepare` function of
    its folder in `recipes/`.

    Arguments
    ---------
    settings : mapping
        `corpus` names the folder; `manifest_folder` and whatever parameters its
        `prepare` has are passed on.
    begun_with : mapping, optional
        `checksums` of the files that a run or a study was begun with. If
        `manifest_folder` has these, they are kept: recordings added later are ignored.

    Raises
    ------
    InputError
        There is no such corpus, its `data_folder` is not given, or its `prepare` finds
        a user error.
    """
    corpus, folder = settings["corpus"], settings["manifest_folder"]
    corpora = [
        module.name for module in pkgutil.iter_modules(recipes.__path__) if module.ispkg
    ]
    if corpus not in corpora:
        raise InputError(f"--corpus {corpus}: is none of {', '.join(sorted(corpora))}")
    if settings["data_folder"] is None:
        raise InputError(f"--data_folder: say where the corpus {corpus!r} is")
    if begun_with and holds(folder, begun_with):
        logger.info("%s: kept as it is; recordings added since are ignored", folder)
        _check_place(settings)
        return
    prepare = importlib.import_module(f"recipes.{corpus}.prepare").prepare
    known = inspect.signature(prepare).parameters
    if settings.get("trials") is not None and "trials" not in known:
        raise InputError(
            f"--trials {settings['trials']}: the trials of the corpus {corpus!r} are "
            "always drawn; leave it out, and score a list with evaluate.py"
        )
    options = {name: settings[name] for name in known if name in settings}
    prepare(**options | {"save_folder": folder})


def _check_place(settings: Mapping) -> None:
    """Checks that the recordings of manifests that are kept are in `data_folder`."""
    if settings.get("shards"):
        return
    root = Path(settings["data_folder"])
    # Not `train`: a million rows take seconds to read, and are read later anyway.
    rows = read_manifest(Path(settings["manifest_folder"]) / "valid.csv")
    if not any((root / row.path).is_file() for row in rows[:N_LOOKED_FOR]):
        raise InputError(
            f"--data_folder {root}: lacks the recordings that this was begun with, "
            f"such as {rows[0].path}; give the folder that has them, or start anew "
            "under another name"
        )


def licence(corpus: str) -> str:
    """The licence of a corpus's recordings, in words."""
    return importlib.import_module(f"recipes.{corpus}").LICENCE


def read_corpus(
    folder: str | os.PathLike,
) -> tuple[dict[str, list[Utterance]], dict[str, TrialList]]:
    """Reads what `prepare_corpus` has made.

    Arguments
    ---------
    folder : str or os.PathLike
        The manifest folder.

    Returns
    -------
    splits : dict
        Utterances of `train`, `valid` and `test`.
    trials : dict
        Trial lists of `valid` and `test`.

    Raises
    ------
    InputError
        A speaker is in two splits, a split has too few, or a file is malformed.
    """
    folder = Path(folder)
    splits = {
        split: read_manifest(folder / f"{split}.csv")
        for split in ("train", "valid", "test")
    }
    check_splits(splits)
    trials = {
        split: read_trials(
            folder / f"{split}_trials.txt", {row.path for row in splits[split]}
        )
        for split in ("valid", "test")
    }
    return splits, trials


def overview(
    splits: Mapping[str, Sequence[Utterance]], trials: Mapping[str, TrialList]
) -> str:
    """What `read_corpus` returns, in one line per split.

    Example
    -------
    >>> rows = [Utterance(f"ann/{n}", 45.0, f"{n}.wav", 0, 1, "ann") for n in range(2)]
    >>> print(overview({"train": rows}, {}))
    train  1 speakers, 2 recordings, 1.5 minutes
    """
    lines = []
    for split, rows in splits.items():
        minutes = sum(row.duration for row in rows) / 60
        time = f"{minutes:.1f} minutes" if minutes < 60 else f"{minutes / 60:.1f} hours"
        n_speakers = len({row.speaker for row in rows})
        line = f"{split:6} {n_speakers} speakers, {len(rows)} recordings, {time}"
        if split in trials:
            n_target = int(trials[split].labels.sum())
            line += f"; {len(trials[split])} trials, {n_target} of them target trials"
        lines.append(line)
    return "\n".join(lines)


def checksums(
    folder: str | os.PathLike, names: Iterable[str] = SEARCHED
) -> dict[str, str]:
    """Short checksums of manifests and trial lists, by default of those that a search
    uses; they do not depend on where the recordings are.

    Arguments
    ---------
    folder : str or os.PathLike
        The manifest folder.
    names : iterable of str
        Files in it.

    Returns
    -------
    dict
        By file.
    """
    return {name: sha256(Path(folder) / name)[:12] for name in names}


def holds(folder: str | os.PathLike, files: Mapping[str, str]) -> bool:
    """Whether a folder has the files of these checksums."""
    try:
        return checksums(folder, files) == files
    except OSError:
        return False


def note_corpus(save_folder: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Records in a run's `save_folder` what it trains and tests on."""
    with replacing(Path(save_folder) / NOTED) as file:
        json.dump(checksums(folder, TRAINED), file, indent=2)


def noted_corpus(save_folder: str | os.PathLike) -> dict[str, str] | None:
    """What `note_corpus` recorded; None for a run from before it did."""
    path = Path(save_folder) / NOTED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_same_corpus(
    save_folder: str | os.PathLike, folder: str | os.PathLike
) -> None:
    """Checks that a run resumes with the recordings and trials that it began with:
    otherwise, test speakers may be among those that it was trained on.

    Raises
    ------
    InputError
        They have changed.
    """
    noted = noted_corpus(save_folder)
    if noted is None:
        return
    for name, checksum in checksums(folder, TRAINED).items():
        if noted.get(name) != checksum:
            raise InputError(
                f"{Path(folder) / name}: has changed since {Path(save_folder).parent} "
                "was begun; choose another --output_folder"
            )
