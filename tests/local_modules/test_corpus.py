"""From a corpus' name to its utterances and trials."""

import importlib
import inspect
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from local_modules.config import plain_values
from local_modules.corpus import (
    check_same_corpus,
    checksums,
    note_corpus,
    overview,
    prepare_corpus,
    read_corpus,
)
from local_modules.errors import InputError
from local_modules.manifest import Utterance

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def settings(tmp_path, voices_folder):
    return {
        "corpus": "folder",
        "data_folder": str(voices_folder),
        "manifest_folder": str(tmp_path / "manifests"),
        "corpus_seed": 1986,
        "trials": None,
        "valid_share": 0.1,
        "test_share": 0.1,
        "min_seconds": 0.5,
        "max_bad_share": 0.01,
        "emb_dim": 192,  # no parameter of any corpus
    }


def test_prepared_corpus_is_what_lies_in_the_folder(settings, voices_folder):
    prepare_corpus(settings)
    splits, trials = read_corpus(settings["manifest_folder"])
    assert list(splits) == ["train", "valid", "test"]
    for split, rows in splits.items():
        on_disk = {
            path.relative_to(voices_folder).as_posix(): path
            for path in (voices_folder / split).rglob("*.wav")
        }
        assert {row.path for row in rows} == set(on_disk)
        for row in rows:
            header = soundfile.info(on_disk[row.path])
            assert (row.start, row.stop) == (0, header.frames)
            assert row.duration == pytest.approx(header.duration)
            assert row.speaker == on_disk[row.path].parent.name
    assert Counter(row.speaker for row in splits["train"]) == {
        f"train{n}": 8 for n in range(6)
    }
    for split, trial_list in trials.items():
        speaker = {row.path: row.speaker for row in splits[split]}
        pairs = zip(trial_list.enrol, trial_list.test, trial_list.labels, strict=True)
        assert all((speaker[a] == speaker[b]) == label for a, b, label in pairs)
        assert 0 < trial_list.labels.sum() < len(trial_list)
    assert set(trials) == {"valid", "test"}


def test_settings_reach_the_corpus(settings):
    settings["min_seconds"] = 60.0
    with pytest.raises(InputError, match="min_seconds 60"):
        prepare_corpus(settings)


@pytest.mark.parametrize("corpus", sorted(p.parent.name for p in RECIPES.glob("*/R*")))
@pytest.mark.parametrize("system", ["conformer", "mfa_conformer"])
def test_every_setting_of_a_corpus_is_a_key(corpus, system):
    """What is no top-level key can't be given on the command line."""
    hparams = RECIPES.parent / "hparams" / f"{system}.yaml"
    keys = plain_values(str(hparams), {"corpus": corpus}).keys()
    prepare = importlib.import_module(f"recipes.{corpus}.prepare").prepare
    assert inspect.signature(prepare).parameters.keys() - keys == set()


def test_unknown_corpus_names_the_known(settings):
    known = sorted(path.parent.name for path in RECIPES.glob("*/__init__.py"))
    assert {"folder", "demo"} <= set(known)
    with pytest.raises(InputError) as error:
        prepare_corpus(settings | {"corpus": "voxceleb9"})
    assert str(error.value) == f"--corpus voxceleb9: is none of {', '.join(known)}"


@pytest.mark.parametrize("corpus", ["demo", "librispeech", "commonvoice"])
def test_trials_that_a_corpus_would_not_read_are_refused(corpus, settings):
    with pytest.raises(InputError, match=f"^--trials my.txt: .*'{corpus}'"):
        prepare_corpus(settings | {"corpus": corpus, "trials": "my.txt"})


def test_unsaid_data_folder(settings):
    with pytest.raises(InputError, match=r"^--data_folder: .*'folder'"):
        prepare_corpus(settings | {"data_folder": None})
    # Names in the trials begin there, even if nothing is prepared.
    with pytest.raises(InputError, match="^--data_folder: say where"):
        prepare_corpus(settings | {"data_folder": None, "skip_prep": True})


@pytest.mark.parametrize(
    "name",
    ["train.csv", "valid.csv", "test.csv", "valid_trials.txt", "test_trials.txt"],
)
def test_a_run_ends_with_the_corpus_it_began_with(settings, tmp_path, name):
    prepare_corpus(settings)
    manifests, save = Path(settings["manifest_folder"]), tmp_path / "run" / "save"
    save.mkdir(parents=True)
    check_same_corpus(save, manifests)  # begun before it was noted
    note_corpus(save, manifests)
    check_same_corpus(save, manifests)
    lines = (manifests / name).read_text().splitlines(keepends=True)
    (manifests / name).write_text("".join(lines[:-1]))
    with pytest.raises(InputError) as error:
        check_same_corpus(save, manifests)
    assert str(error.value) == (
        f"{manifests / name}: has changed since {tmp_path / 'run'} was begun; choose "
        "another --output_folder"
    )


def test_what_was_begun_keeps_its_manifests(settings, tmp_path, voices_folder):
    manifests = Path(settings["manifest_folder"])
    prepare_corpus(settings)
    begun_with = checksums(manifests)
    train = (manifests / "train.csv").read_bytes()
    fewer = shutil.copytree(voices_folder, tmp_path / "fewer")
    next((fewer / "train" / "train0").iterdir()).unlink()
    settings["data_folder"] = str(fewer)
    prepare_corpus(settings, begun_with)
    assert (manifests / "train.csv").read_bytes() == train
    # Elsewhere there have to be some of them.
    with pytest.raises(InputError) as error:
        prepare_corpus({**settings, "data_folder": str(tmp_path)}, begun_with)
    told = f"--data_folder {tmp_path}: lacks the recordings that this was begun with"
    assert str(error.value).startswith(told)
    prepare_corpus({**settings, "data_folder": "x", "shards": "shards"}, begun_with)
    # Where they are not what it was begun with, they are made anew.
    (manifests / "train.csv").write_bytes(train + b"\n")
    prepare_corpus(settings, begun_with)
    assert (manifests / "train.csv").read_bytes() not in (train, train + b"\n")
    (manifests / "valid.csv").unlink()
    prepare_corpus(settings, begun_with)
    assert (manifests / "valid.csv").exists()
    assert (manifests / "train.csv").read_bytes() != train


def test_missing_data_folder_is_named(settings, tmp_path):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=missing):
        prepare_corpus(settings | {"data_folder": missing})


def test_unprepared_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/train.csv"):
        read_corpus(tmp_path)


def test_speaker_in_two_splits(settings):
    prepare_corpus(settings)
    folder = Path(settings["manifest_folder"])
    train = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(train.replace(",train0\n", ",test0\n"))
    with pytest.raises(InputError, match="test0 is in both train and test"):
        read_corpus(folder)


def test_trial_of_another_split(settings):
    prepare_corpus(settings)
    folder = Path(settings["manifest_folder"])
    test_trials = (folder / "test_trials.txt").read_text()
    (folder / "valid_trials.txt").write_text(test_trials)
    with pytest.raises(InputError, match=r"valid_trials\.txt:1.*test/"):
        read_corpus(folder)


def test_hours_are_hours():
    rows = [Utterance(f"a/{n}", 3600.0, f"{n}.wav", 0, 1, "a") for n in range(5)]
    assert overview({"train": rows}, {}).endswith("5 recordings, 5.0 hours")
