import csv
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataset import DynamicItemDataset

from local_modules.errors import InputError, RunError
from local_modules.manifest import check_splits, read_manifest
from local_modules.trials import read_trials

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT.parent / "shared" / "speech"
SPLITS = ("train", "valid", "test")
OUTPUTS = {
    "train.csv",
    "valid.csv",
    "test.csv",
    "valid_trials.txt",
    "test_trials.txt",
    "skipped.csv",
    "prepared.json",
}

prepare = importlib.import_module("recipes.folder.prepare").prepare


def write_audio(path, seconds=0.6, rate=16000, channels=1):
    """Writes noise that is the same for the same path name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    soundfile.write(
        path, 0.1 * rng.standard_normal((round(seconds * rate), channels)), rate
    )


def write_speakers(folder, names, n_utterances=2):
    for name in names:
        for u in range(n_utterances):
            write_audio(folder / name / f"{u}.wav")


def names(prefix, n):
    return [f"{prefix}{i:02d}" for i in range(n)]


@pytest.fixture
def data(tmp_path):
    """Twenty speakers, two recordings each, no splits."""
    write_speakers(tmp_path / "data", names("s", 20))
    return tmp_path / "data"


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


def read(save):
    splits = {split: read_manifest(save / f"{split}.csv") for split in SPLITS}
    check_splits(splits)
    return splits


def speakers(utterances):
    return {u.speaker for u in utterances}


def snapshot(folder):
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failure(kind, *args, **settings):
    """Runs `prepare` and returns the one line that it fails with."""
    with pytest.raises(InputError) as error:
        prepare(*(str(arg) for arg in args), **settings)
    assert type(error.value) is kind
    message = str(error.value)
    assert "\n" not in message
    return message


# Layouts and splits


def test_splits_by_speaker(data, save):
    prepare(str(data), str(save))
    splits = read(save)
    assert {s: len(speakers(u)) for s, u in splits.items()} == {
        "train": 16,
        "valid": 2,
        "test": 2,
    }
    assert sum(map(len, splits.values())) == 40
    assert {path.name for path in save.iterdir()} == OUTPUTS


def test_rows(tmp_path, save):
    data = tmp_path / "data"
    write_speakers(data, names("s", 8))
    write_audio(data / "s00" / "day 1" / "b.c.flac", 0.75, 44100, 2)
    prepare(str(data), str(save))
    rows = {u.path: u for split in read(save).values() for u in split}
    row = rows["s00/day 1/b.c.flac"]
    assert row.id == "s00/day 1/b.c"
    assert row.speaker == "s00"
    assert (row.start, row.stop, row.duration) == (0, 33075, 0.75)


def test_named_splits(tmp_path, save):
    data = tmp_path / "data"
    for split in SPLITS:
        write_speakers(data / split, names(split, 3))
    prepare(str(data), str(save))
    for split, rows in read(save).items():
        assert speakers(rows) == set(names(split, 3))
        assert all(u.path.startswith(f"{split}/") for u in rows)


def test_dev_is_valid_beside_test(tmp_path, save):
    data = tmp_path / "data"
    for split in ("train", "dev", "test"):
        write_speakers(data / split, names(split, 3))
    prepare(str(data), str(save))
    assert speakers(read(save)["valid"]) == set(names("dev", 3))


@pytest.mark.parametrize("folder", ["dev", "test"])
def test_valid_is_held_out_of_train(tmp_path, save, folder):
    data = tmp_path / "data"
    write_speakers(data / "train", names("t", 20))
    write_speakers(data / folder, names("e", 3))
    prepare(str(data), str(save), valid_share=0.25)
    splits = read(save)
    assert speakers(splits["test"]) == set(names("e", 3))
    assert len(speakers(splits["valid"])) == 5
    assert speakers(splits["valid"]) | speakers(splits["train"]) == set(names("t", 20))


@pytest.mark.parametrize("folders", [("train",), ("train", "valid")])
def test_test_is_held_out_of_train(tmp_path, save, folders):
    data = tmp_path / "data"
    for folder in folders:
        write_speakers(data / folder, names(folder, 10))
    prepare(str(data), str(save), test_share=0.3)
    splits = read(save)
    assert len(speakers(splits["test"])) == 3
    assert speakers(splits["test"]) < set(names("train", 10))


def test_seed_chooses_the_speakers(data, tmp_path):
    held_out = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(str(data), str(tmp_path / name), corpus_seed=seed)
        splits = read(tmp_path / name)
        held_out.append((speakers(splits["valid"]), speakers(splits["test"])))
    assert held_out[0] == held_out[1] != held_out[2]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_more_speaker_hardly_changes_who_is_held_out(data, tmp_path):
    prepare(str(data), str(tmp_path / "a"))
    write_speakers(data, ["zoe"])
    prepare(str(data), str(tmp_path / "b"))
    before, after = (
        speakers(read(tmp_path / name)["test"])
        | speakers(read(tmp_path / name)["valid"])
        for name in "ab"
    )
    assert len(before - after) <= 1


def test_speakers_with_two_utterances_are_held_out_first(tmp_path, save):
    data = tmp_path / "data"
    write_speakers(data, names("one", 16), n_utterances=1)
    write_speakers(data, names("two", 4), n_utterances=2)
    prepare(str(data), str(save))
    splits = read(save)
    assert speakers(splits["valid"]) | speakers(splits["test"]) == set(names("two", 4))


def test_speakers_of_two_sessions_are_held_out_first(tmp_path, save):
    data = tmp_path / "data"
    for name in names("one", 16):
        write_speakers(data / name, ["monday"])
    for name in names("two", 4):
        write_speakers(data / name, ["monday", "tuesday"], n_utterances=1)
    prepare(str(data), str(save))
    splits = read(save)
    assert speakers(splits["valid"]) | speakers(splits["test"]) == set(names("two", 4))


# Audio


def test_formats_rates_and_channels(tmp_path, save):
    data = tmp_path / "data"
    kinds = [
        ("wav", 8000, 1),
        ("flac", 44100, 2),
        ("ogg", 48000, 1),
        ("mp3", 16000, 1),
        ("aiff", 22050, 2),
        ("WAV", 16000, 3),
    ]
    for speaker in names("s", 6):
        for suffix, rate, channels in kinds:
            write_audio(
                data / speaker / f"{suffix}{rate}.{suffix}", 0.8, rate, channels
            )
        (data / speaker / "notes.txt").write_text("no audio")
    prepare(str(data), str(save))
    rows = [u for split in read(save).values() for u in split]
    assert len(rows) == 36
    for row in rows:
        info = soundfile.info(data / row.path)
        assert (row.start, row.stop) == (0, info.frames)
        assert row.duration == pytest.approx(0.8, abs=0.1)


def test_speechbrain_reads_names_of_all_kinds(tmp_path, save):
    data = tmp_path / "data"
    odd = ["Ann, B.", 'a "b"', "李 雷", "o'neil", "#1", "-x"]
    write_speakers(data, odd)
    prepare(str(data), str(save))
    found = set()
    for split in SPLITS:
        dataset = DynamicItemDataset.from_csv(
            save / f"{split}.csv",
            replacements={"data_root": str(data)},
            output_keys=["wav", "stop", "spk_id"],
        )
        for item in dataset:
            audio, rate = audio_io.load(item["wav"])
            assert audio.shape == (1, int(item["stop"])) and rate == 16000
            found.add(item["spk_id"])
    assert found == set(odd)
    for split in ("valid", "test"):
        known = {u.path for u in read(save)[split]}
        assert len(read_trials(save / f"{split}_trials.txt", known)) == 4


def test_links_are_followed_but_not_in_circles(data, tmp_path, save):
    write_speakers(tmp_path / "elsewhere", ["zoe"])
    (data / "zoe").symlink_to(tmp_path / "elsewhere" / "zoe")
    (data / "s00" / "up").symlink_to(data)
    prepare(str(data), str(save))
    rows = [u for split in read(save).values() for u in split]
    assert len(rows) == 42
    assert "zoe" in speakers(rows)


def test_hidden_files_are_no_recordings(data, save):
    (data / "s00" / "._0.wav").write_bytes(b"\0\5\26\7")
    prepare(str(data), str(save))
    assert (save / "skipped.csv").read_text() == "path,reason\n"


# Bad recordings


def make_bad(data):
    """Adds one recording of each kind that cannot be used, and says why not."""
    speaker = data / "s00"
    (speaker / "empty.wav").touch()
    (speaker / "text.flac").write_text("not a recording")
    (speaker / "cut.mp3").write_bytes(b"ID3")
    soundfile.write(speaker / "silent.wav", np.zeros((0, 1)), 16000)
    write_audio(speaker / "short.wav", 0.25)
    (speaker / "gone.wav").symlink_to(data / "nowhere.wav")
    write_audio(data / "stray.wav")
    write_audio(speaker / "0.flac")
    shutil.copy(speaker / "0.wav", speaker / "$price.wav")
    shutil.copy(speaker / "0.wav", speaker / "two  spaces.wav")
    shutil.copy(speaker / "0.wav", speaker / "line\nend.wav")
    shutil.copy(speaker / "0.wav", os.fsencode(speaker) + b"/\xff.wav")
    return {
        "s00/empty.wav": "is empty",
        "s00/text.flac": "cannot be decoded",
        "s00/cut.mp3": "cannot be decoded",
        "s00/silent.wav": "holds no samples",
        "s00/short.wav": "is 0.250 s long, under min_seconds 0.5",
        "s00/gone.wav": "is a broken link",
        "stray.wav": "lies in no speaker folder",
        "s00/0.wav": "has the ID of s00/0.flac",
        "s00/$price.wav": "has a name with",
        "s00/two  spaces.wav": "has a name with",
        "s00/line\\nend.wav": "has a name with",
        "s00/\\udcff.wav": "has a name with",
    }


def test_bad_recordings_are_named_counted_and_skipped(data, save, caplog):
    expected = make_bad(data)
    with caplog.at_level(logging.WARNING):
        prepare(str(data), str(save), max_bad_share=0.5)
    with open(save / "skipped.csv", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == expected.keys()
    for path, reason in expected.items():
        assert rows[path].startswith(reason), path
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 6
    assert all(line.startswith("skipped s00/") for line in lines[:5])
    assert "skipped 12 of 52 audio files (23.08%)" in lines[5]
    assert str(save / "skipped.csv") in lines[5]
    assert sum(map(len, read(save).values())) == 40


def test_too_many_bad_recordings(data, save):
    (data / "s03" / "0.wav").write_bytes(b"")
    message = failure(RunError, data, save)
    for part in (str(data), "1 of 40", "2.50%", "s03/0.wav, is empty", "max_bad_share"):
        assert part in message
    assert "s03/0.wav,is empty" in (save / "skipped.csv").read_text()
    prepare(str(data), str(save), max_bad_share=0.025)
    assert len(read(save)["train"]) in (31, 32)


def test_min_seconds(data, save):
    assert "under min_seconds 0.7" in failure(RunError, data, save, min_seconds=0.7)
    prepare(str(data), str(save), min_seconds=0.6)


# Trials


def test_drawn_trials_name_the_split(data, save):
    prepare(str(data), str(save))
    for split in ("valid", "test"):
        known = {u.path: u.speaker for u in read(save)[split]}
        trials = read_trials(save / f"{split}_trials.txt", known)
        assert trials.labels.tolist() == [True] * 2 + [False] * 2
        for label, a, b in zip(trials.labels, trials.enrol, trials.test, strict=True):
            assert (known[a] == known[b]) == label


@pytest.mark.parametrize("folders", [("",), SPLITS])
def test_drawn_targets_are_across_the_folders_of_a_speaker(corpus, caplog, folders):
    recordings = ("monday/1.wav", "monday/late/2.wav", "tuesday/1.wav", "3.wav")
    for folder in folders:
        for name in names(f"{folder}s", 6):
            corpus.add(*[f"{folder}/{name}/{one}".lstrip("/") for one in recordings])
    prepare(str(corpus.data), str(corpus.save))
    for split in ("valid", "test"):
        known = {u.path: u.speaker for u in corpus.splits()[split]}
        assert corpus.targets(split) == {
            frozenset((a, b))
            for a, b in combinations(known, 2)
            if known[a] == known[b] and not ("monday" in a and "monday" in b)
        }
    assert "two sessions" not in caplog.text


@pytest.mark.parametrize("folder", ["", "wav/"])
def test_where_nobody_has_two_sessions_targets_are_within_one(corpus, caplog, folder):
    """Loose recordings are sessions of their own, and nothing to warn of."""
    corpus.add(*[f"{name}/{folder}{u}.wav" for name in names("s", 6) for u in range(3)])
    prepare(str(corpus.data), str(corpus.save))
    for split in ("valid", "test"):
        assert len(corpus.targets(split)) == 2 * 3
        warning = f"{split}: no speaker was recorded in two sessions"
        assert (warning in caplog.text) == bool(folder)


@pytest.fixture
def named(tmp_path):
    """A corpus with train/ and dev/ and its own trial list for dev."""
    data = tmp_path / "data"
    write_speakers(data / "train", names("t", 10))
    write_speakers(data / "dev", names("e", 3))
    (data / "trials.txt").write_text(
        "1 dev/e00/0.wav dev/e00/1.wav\n"
        "0 dev/e00/0.wav dev/e01/0.wav\n"
        "1 dev/e02/0.wav dev/e02/1.wav\n"
    )
    return data


def test_own_trials(named, save):
    prepare(str(named), str(save))
    assert (save / "test_trials.txt").read_text() == (named / "trials.txt").read_text()


def test_trials_elsewhere(named, save, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("0 dev/e01/0.wav dev/e02/0.wav\n1 dev/e01/0.wav dev/e01/1.wav\n")
    prepare(str(named), str(save), trials=str(path))
    assert (save / "test_trials.txt").read_text() == path.read_text()


def test_own_valid_trials_choose_the_speakers_held_out(named, save):
    text = "0 train/t03/0.wav train/t07/0.wav\n1 train/t03/0.wav train/t03/1.wav\n"
    (named / "valid_trials.txt").write_text(text)
    prepare(str(named), str(save))
    assert speakers(read(save)["valid"]) == {"t03", "t07"}
    assert (save / "valid_trials.txt").read_text() == text


def test_who_is_in_the_list_of_valid_is_not_drawn_for_test(data, save, tmp_path):
    prepare(str(data), str(tmp_path / "before"))
    one, other = sorted(speakers(read(tmp_path / "before")["test"]))
    text = f"0 {one}/0.wav {other}/0.wav\n1 {one}/0.wav {one}/1.wav\n"
    (data / "valid_trials.txt").write_text(text)
    prepare(str(data), str(save))
    found = read(save)
    assert speakers(found["valid"]) == {one, other}
    assert len(speakers(found["test"])) == 2
    assert (save / "valid_trials.txt").read_text() == text


def test_own_trials_choose_the_test_speakers_where_there_are_no_splits(data, save):
    (data / "trials.txt").write_text(
        "1 s04/0.wav s04/1.wav\n0 s04/0.wav s11/0.wav\n0 s04/1.wav s15/0.wav\n"
    )
    prepare(str(data), str(save))
    assert speakers(read(save)["test"]) == {"s04", "s11", "s15"}


def test_trials_of_skipped_recordings_are_left_out(named, save, caplog):
    (named / "dev" / "e02" / "1.wav").write_bytes(b"")
    prepare(str(named), str(save), max_bad_share=0.1)
    text = (named / "trials.txt").read_text().splitlines(keepends=True)
    assert (save / "test_trials.txt").read_text() == "".join(text[:2])
    assert "1 of 3 trials are left out" in caplog.text


def test_no_target_left_without_the_skipped_recordings(named, save):
    for speaker in ("e00", "e02"):
        (named / "dev" / speaker / "1.wav").write_bytes(b"")
    message = failure(InputError, named, save, max_bad_share=0.1)
    assert str(named / "trials.txt") in message
    assert "0 target and 1 non-target" in message


def test_trial_of_another_split(named, save):
    path = named / "trials.txt"
    path.write_text(path.read_text() + "0 dev/e00/0.wav train/t00/0.wav\n")
    message = failure(InputError, named, save)
    assert message.startswith(f"{path}:4: train/t00/0.wav is not in this split")


def test_trials_that_do_not_exist(data, save):
    message = failure(InputError, data, save, trials="nowhere.txt")
    assert message.startswith("trials nowhere.txt: is not a file")


def test_no_target_can_be_drawn(tmp_path, save):
    write_speakers(tmp_path / "data", names("s", 10), n_utterances=1)
    message = failure(InputError, tmp_path / "data", save)
    assert "split: no target trial can be drawn: none of 2 speakers" in message


# Wrong folders and settings


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda d: None, "does not exist"),
        (lambda d: d.write_text(""), "is not a folder"),
        (lambda d: d.mkdir(), "no audio that libsndfile reads (found nothing)"),
        (
            lambda d: [(d / "ann").mkdir(parents=True), (d / "ann/1.m4a").touch()],
            "(found 1 .m4a)",
        ),
        (
            lambda d: [write_audio(d / "1.wav"), write_audio(d / "2.wav")],
            "2 audio files, such as 1.wav, in no speaker folder",
        ),
        (
            lambda d: write_audio(d / "train" / "1.wav"),
            "1 audio files, such as train/1.wav, in no speaker folder",
        ),
        (
            lambda d: [write_speakers(d / s, names(s, 2)) for s in ("train", "val")],
            "val/ lies beside train/",
        ),
        (
            lambda d: [write_speakers(d / s, names(s, 2)) for s in ("dev", "test")],
            "has dev/ and no train/",
        ),
        (
            lambda d: [write_speakers(d / "wav", names("s", 8))],
            "1 speakers are too few",
        ),
    ],
)
def test_wrong_folder(tmp_path, save, make, named):
    data = tmp_path / "data"
    make(data)
    message = failure(InputError, data, save)
    assert message.startswith(f"data_folder {data}: ")
    assert named in message
    assert "expected <speaker>/**/<audio>" in message
    assert not (save / "prepared.json").exists()


def test_valid_and_dev(tmp_path, save):
    for split in ("train", "valid", "dev"):
        write_speakers(tmp_path / "data" / split, names(split, 2))
    message = failure(InputError, tmp_path / "data", save)
    assert "has both valid/ and dev/; keep one" in message


def test_too_few_speakers(tmp_path, save):
    write_speakers(tmp_path / "data", names("s", 5))
    message = failure(InputError, tmp_path / "data", save)
    assert "5 speakers are too few: valid takes 2 and leaves 1 to train on" in message


def test_speaker_in_two_splits(named, save):
    write_speakers(named / "dev", ["t04"])
    message = failure(InputError, named, save)
    assert "speaker t04 is in both train/ and dev/" in message


def test_split_with_one_speaker(named, save):
    for speaker in ("e01", "e02"):
        shutil.rmtree(named / "dev" / speaker)
    assert "dev/ has one speaker, e00" in failure(InputError, named, save)


def test_split_folder_without_audio(named, save):
    (named / "test").mkdir()
    assert "test/ has no utterances" in failure(InputError, named, save)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("valid_share", 0),
        ("test_share", 1.0),
        ("min_seconds", -1),
        ("min_seconds", 0),  # nothing can be heard in a millisecond
        ("min_seconds", float("nan")),
        ("max_bad_share", 1.5),
    ],
)
def test_wrong_setting(data, save, key, value):
    message = failure(InputError, data, save, **{key: value})
    assert message.startswith(f"{key} is {value}; it must be ")


def test_save_folder_that_is_a_file(data, save):
    save.write_text("")
    assert f"{save}: can't be written: " in failure(InputError, data, save)


def test_folder_that_cannot_be_read(data, save):
    (data / "loop").symlink_to("loop")
    message = failure(InputError, data, save)
    assert message.startswith(f"data_folder {data}: {data / 'loop'} cannot be read: ")


# Again, and after a kill


def test_second_run_writes_nothing(data, save):
    prepare(str(data), str(save))
    before = snapshot(save)
    prepare(str(data), str(save))
    assert snapshot(save) == before


def add(data):
    write_audio(data / "s00" / "new.wav")


def remove(data):
    (data / "s00" / "0.wav").unlink()


def rename(data):
    (data / "s00").rename(data / "s99")


def replace(data):
    write_audio(data / "s00" / "0.wav", 0.7)


def replace_by_as_many_bytes(data):
    size = (data / "s00" / "0.wav").stat().st_size
    write_audio(data / "s00" / "0.wav", 1.2, rate=8000)
    assert (data / "s00" / "0.wav").stat().st_size == size


def list_trials(data):
    (data / "trials.txt").write_text("1 s0/0.wav s0/1.wav\n0 s0/0.wav s1/0.wav\n")
    write_speakers(data, ["s0", "s1"])


@pytest.mark.parametrize(
    "change",
    [add, remove, rename, replace, replace_by_as_many_bytes, list_trials],
)
def test_another_corpus_is_prepared_anew(data, save, tmp_path, change):
    prepare(str(data), str(save))
    change(data)
    prepare(str(data), str(save))
    prepare(str(data), str(tmp_path / "fresh"))
    assert contents(save) == contents(tmp_path / "fresh")


def test_other_settings_are_prepared_anew(data, save):
    prepare(str(data), str(save), corpus_seed=1)
    before = contents(save)
    prepare(str(data), str(save), corpus_seed=2)
    assert contents(save) != before


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_a_lost_output_is_written_again(data, save, name):
    prepare(str(data), str(save))
    before = contents(save)
    (save / name).unlink()
    prepare(str(data), str(save))
    assert contents(save) == before


KILL_BEFORE_EACH_FILE = """
import os, signal, sys
from recipes.folder.prepare import prepare

data, *saves = sys.argv[1:]
replace, done = os.replace, []

def replace_or_die(source, target):
    if len(done) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(target)
    replace(source, target)

os.replace = replace_or_die
for n, save in enumerate(saves):
    child = os.fork()
    if not child:
        prepare(data, save, corpus_seed=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_killed_run_is_never_taken_for_whole(data, tmp_path):
    """Killed before each file comes into place, over what an older run left."""
    prepare(str(data), str(tmp_path / "old"), corpus_seed=1)
    prepare(str(data), str(tmp_path / "new"), corpus_seed=2)
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    saves = [tmp_path / f"save{n}" for n in range(len(OUTPUTS))]
    for save in saves:
        shutil.copytree(tmp_path / "old", save)
    command = [sys.executable, "-c", KILL_BEFORE_EACH_FILE, data, *saves]
    subprocess.run(command, cwd=ROOT, check=True)
    for save in saves:
        left = {k: v for k, v in contents(save).items() if k in OUTPUTS}
        assert left.keys() == OUTPUTS - {"prepared.json"}
        assert all(text in (old[k], new[k]) for k, text in left.items())
        prepare(str(data), str(save), corpus_seed=2)
        assert {k: v for k, v in contents(save).items() if k in OUTPUTS} == new


def test_the_record_holds_what_was_prepared(data, save):
    prepare(str(data), str(save), corpus_seed=7)
    record = json.loads((save / "prepared.json").read_text())
    assert record["settings"]["seed"] == 7
    assert record["audio"]["files"] == 40
    assert record["audio"]["bytes"] == sum(p.stat().st_size for p in data.glob("*/*"))


# The corpus this project is measured on


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"{SPEECH} is not there")
def test_real_speech(save):
    prepare(str(SPEECH), str(save))
    splits = read(save)
    train, valid, test = (speakers(splits[split]) for split in SPLITS)
    assert len(train | valid) == 457
    assert len(valid) == 46
    assert len(test) == 143
    assert not (train & valid or train & test or valid & test)
    assert all(u.path.startswith("train/") for s in SPLITS[:2] for u in splits[s])
    assert sum(map(len, splits.values())) == 3621
    trials = read_trials(save / "test_trials.txt", {u.path for u in splits["test"]})
    assert Counter(trials.labels.tolist()) == {True: 3865, False: 3865}
    assert (save / "test_trials.txt").read_bytes() == (
        SPEECH / "trials.txt"
    ).read_bytes()
