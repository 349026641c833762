"""What the recipes' own tests don't reach."""

import importlib
import inspect
import os
import pkgutil
import random

import numpy as np
import pytest
import soundfile
from speechbrain.dataio.encoder import CategoricalEncoder

import recipes
from local_modules.audio import UtteranceReader
from local_modules.corpus import licence
from local_modules.errors import InputError, RunError
from local_modules.manifest import Utterance
from local_modules.preparation.lists import (
    TrialFile,
    draw_split_trials,
    read_trial_file,
)
from local_modules.preparation.recordings import (
    Recording,
    Samples,
    Seconds,
    Skipped,
    read_headers,
)
from local_modules.preparation.scan import path_from
from local_modules.preparation.splits import (
    draw_speakers,
    longest_of_each_file,
    remove_speakers,
)
from local_modules.trials import draw_trials
from tests.recordings import write_plain_mp3, write_streamed_flac

RECIPES = [
    module.name for module in pkgutil.iter_modules(recipes.__path__) if module.ispkg
]


def utterance(name, speaker=None, duration=1.0, path=None):
    return Utterance(
        name, duration, path or f"{name}.wav", 0, 16000, speaker or name[0]
    )


@pytest.mark.parametrize("corpus", RECIPES)
def test_every_recipe_has_speechbrains_signature_and_a_readme(corpus, tmp_path):
    prepare = importlib.import_module(f"recipes.{corpus}.prepare").prepare
    parameters = inspect.signature(prepare).parameters
    assert list(parameters)[:2] == ["data_folder", "save_folder"]
    assert parameters["skip_prep"].default is False
    prepare(str(tmp_path / "none"), str(tmp_path / "save"), skip_prep=True)
    assert not os.listdir(tmp_path)
    folder = os.path.join(*recipes.__path__, corpus)
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        assert "licence" in file.read().lower() or corpus == "folder"
    assert licence(corpus)


def test_headers_of_many_files_come_in_order(tmp_path):
    """More than a batch for each thread, of different lengths."""
    rng = random.Random(0)
    lengths = [rng.randint(1, 3000) for _ in range(500)]
    for number, length in enumerate(lengths):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(length), 1000)
    recordings = [Recording(f"u{n}", f"{n}.wav", "s") for n in range(500)]
    read = list(read_headers(tmp_path, recordings, min_seconds=0.5))
    assert [recording for recording, _ in read] == recordings
    for (recording, result), length in zip(read, lengths, strict=True):
        if length < 500:
            assert isinstance(result, Skipped) and "under min_seconds" in result.reason
        else:
            assert (result.id, result.stop) == (recording.id, length)
            assert result.duration == length / 1000


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        (None, (0, 16000)),
        (Samples(800, 16000), (800, 16000)),
        (Seconds(0.1, 1.9), (800, 15200)),
        # As Kaldi's extract-segments takes them.
        (Seconds(1.0, -1), (8000, 16000)),
        (Seconds(1.0, 2.1), (8000, 16000)),
        (Seconds(1.0, 2.49), (8000, 16000)),
        (Seconds(1.0, 2.5), "has no samples 8000 to 20000 (u), only 16000"),
        (Seconds(2.1, 2.2), "has no samples 16800 to 16000 (u), only 16000"),
        (Samples(900, 900), "has no samples 900 to 900 (u), only 16000"),
        (Samples(-1, 900), "has no samples -1 to 900 (u), only 16000"),
    ],
)
def test_stretches(tmp_path, stretch, expected):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 8000)
    recording = Recording("u", "a.wav", "s", stretch=stretch)
    ((_, result),) = read_headers(tmp_path, [recording], 0.0)
    if isinstance(expected, str):
        assert result == Skipped("a.wav", expected)
    else:
        assert (result.start, result.stop) == expected
        assert result.duration == (expected[1] - expected[0]) / 8000


def test_an_id_is_one_of_its_split(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 8000)
    recordings = [
        Recording("u", "a.wav", "s", split) for split in ("train", "test", "test")
    ]
    first, second, third = (
        result for _, result in read_headers(tmp_path, recordings, 0.0)
    )
    assert first.id == second.id == "u"
    assert third == Skipped("a.wav", "has the ID of a.wav")


def test_what_a_list_names_may_be_short(tmp_path):
    for name, n_samples in (("long", 800), ("short", 799)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(n_samples), 8000)
    recordings = [
        Recording(name, f"{name}.wav", "s", split)
        for split in ("test", "train")
        for name in ("long", "short")
    ]
    read = read_headers(tmp_path, recordings, 0.5, listed={"test"})
    kinds = [type(result) for _, result in read]
    assert kinds == [Utterance, Skipped, Skipped, Skipped]


def test_samples_without_a_header_are_skipped(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(16000))
    ((_, result),) = read_headers(tmp_path, [Recording("u", "a.raw", "s")], 0.0)
    assert result == Skipped("a.raw", "cannot be decoded: raw audio without a header")


def test_a_flac_that_does_not_say_how_long_it_is(tmp_path):
    write_streamed_flac(tmp_path / "a.flac", np.zeros(16000), 16000)
    assert soundfile.info(tmp_path / "a.flac").frames > 2**62
    ((_, result),) = read_headers(tmp_path, [Recording("u", "a.flac", "s")], 0.5)
    reason = "does not declare its length; convert it again"
    assert result == Skipped("a.flac", reason)


def test_an_mp3_is_as_long_as_what_can_be_read(tmp_path, caplog):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 24000)
    path = tmp_path / "a.mp3"
    write_plain_mp3(path, noise, 16000)
    ((_, result),) = read_headers(tmp_path, [Recording("u", "a.mp3", "s")], 0.5)
    assert soundfile.info(path).frames > result.stop + 1600
    assert 24000 <= result.stop < 24000 + 3 * 1152
    wav = UtteranceReader(16000)("u", str(path), 0, result.stop)
    assert len(wav) == result.stop and not caplog.records


def test_an_mp3_that_says_how_long_it_is_is_taken_at_its_word(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.mp3", np.zeros(16000), 16000)
    monkeypatch.setattr("local_modules.preparation.recordings.BLOCK", None)
    ((_, result),) = read_headers(tmp_path, [Recording("u", "a.mp3", "s")], 0.5)
    assert result.stop == 16000


@pytest.mark.parametrize(
    ("name", "is_kept"), [("a => b", False), ("a=>b", True), ("a =>", True)]
)
def test_whom_speechbrain_can_name_again(name, is_kept, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    ((_, result),) = read_headers(tmp_path, [Recording("u", "a.wav", name)], 0.5)
    assert isinstance(result, Utterance) == is_kept
    encoder, again = CategoricalEncoder(), CategoricalEncoder()
    encoder.update_from_iterable([name, "other"])
    encoder.save(tmp_path / "label_encoder.txt")
    if is_kept:
        again.load(tmp_path / "label_encoder.txt")
        assert again.lab2ind == encoder.lab2ind
    else:
        assert "' => '" in result.reason
        with pytest.raises(ValueError):
            again.load(tmp_path / "label_encoder.txt")


def test_longest_of_each_file():
    rows = [
        utterance("a1", duration=1.0, path="x"),
        utterance("a2", duration=3.0, path="x"),
        utterance("b1", duration=2.0, path="y"),
        utterance("a3", duration=2.0, path="x"),
    ]
    assert [row.id for row in longest_of_each_file(rows)] == ["a2", "b1"]


def test_removed_speakers_are_counted(caplog):
    caplog.set_level("INFO")
    names = ["a1", "a2", "b1", "c1"]
    splits = {
        "train": [utterance(name) for name in names],
        "test": [utterance("a9"), utterance("d9")],
    }
    remove_speakers(splits, "test")
    assert [u.id for u in splits["train"]] == ["b1", "c1"]
    assert "train: leaves 1 speakers, with 2 utterances, to test" in caplog.text


def test_list_with_ids(tmp_path):
    path = tmp_path / "list"
    path.write_text("1 A1 A2\n0 A1 B1\n1 B1 B2\n")
    file = TrialFile(path, str.lower)
    known = [utterance(name) for name in ("a1", "a2", "b1")]
    trials = read_trial_file(file, known, (), max_bad_share=0.25)
    assert (trials.enrol, trials.test) == (["a1.wav"] * 2, ["a2.wav", "b1.wav"])
    with pytest.raises(RunError, match="1 of its 4 recordings.* the first is B2"):
        read_trial_file(file, known, (), max_bad_share=0.2)


def test_drawn_targets_join_sessions_where_there_are_some(caplog):
    rows = [utterance(f"{s}{u}") for s in "ab" for u in range(4)]
    days = {row.path: f"day{row.id[1] in '23'}" for row in rows}
    trials = draw_split_trials("test", rows, days, seed=1)
    assert trials.labels.sum() == 2 * 4
    assert not caplog.text
    one_day = dict.fromkeys(days, "day1")
    assert draw_split_trials("test", rows, one_day, seed=1).labels.sum() == 2 * 6
    assert "test: no speaker was recorded in two sessions" in caplog.text


def prolific(n_most, n_others):
    """A speaker with many recordings, two days of them, beside nine others."""
    counts = {"a": n_most} | dict.fromkeys("bcdefghij", n_others)
    rows = [utterance(f"{s}{u:04d}") for s, n in counts.items() for u in range(n)]
    return rows, {row.path: f"day{row.id[1:] < '0010'}" for row in rows}


def test_who_has_very_many_recordings_is_not_the_error_rate(caplog):
    caplog.set_level("INFO")
    rows, days = prolific(500, 20)
    trials = draw_split_trials("test", rows, days, seed=1)
    of_most = {p for p in (*trials.enrol, *trials.test) if p.startswith("a")}
    assert len(of_most) == 30
    # All of the few of the other day.
    assert sum(days[path] == "dayTrue" for path in of_most) == 10
    pairs = zip(trials.enrol, trials.test, trials.labels, strict=True)
    targets = [a[0] for a, b, label in pairs if label and a[0] == b[0]]
    assert len(targets) == 9 * 10 * 10 + 10 * 20
    assert "test: trials are drawn from 210 of 680 recordings" in caplog.text
    again = draw_split_trials("test", rows[::-1], days, seed=1)
    assert (again.enrol, again.test) == (trials.enrol, trials.test)
    other = draw_split_trials("test", rows, days, seed=2)
    assert of_most != {p for p in (*other.enrol, *other.test) if p.startswith("a")}


@pytest.mark.parametrize("counts", [(30, 2), (100, 100)])
def test_where_nobody_stands_out_all_recordings_are_compared(counts, caplog):
    caplog.set_level("INFO")
    rows, _ = prolific(*counts)
    trials = draw_split_trials("test", rows, {}, seed=1)
    known = {row.path: row.speaker for row in rows}
    drawn = draw_trials(known, 1, session_of={path: path for path in known})
    assert (trials.enrol, trials.test) == (drawn.enrol, drawn.test)
    assert not caplog.text


def test_who_is_drawn_was_recorded_in_two_sessions_or_in_two_files():
    rows = [utterance(f"{s}{u}") for s in "abcdefgh" for u in "12"]
    rows += [utterance(f"{s}{u}", path=f"{s}.wav") for s in "xyz" for u in "12"]
    drawn = [draw_speakers(rows, set("gh"), n, seed=1) for n in range(1, 12)]
    assert drawn[0] < drawn[1] == set("gh") < drawn[4]
    assert drawn[7] == set("abcdefgh") < drawn[8]
    # Where no session is known all are sessions of their own, and nothing changes.
    alike = rows[:16]
    assert draw_speakers(alike, set("abcdefgh"), 3, seed=1) == set("dga")


@pytest.mark.parametrize(("speakers", "n_told"), [("ab", 0), ("abc", 1)])
def test_it_is_told_where_few_give_all_target_trials(speakers, n_told, caplog):
    rows = [utterance(f"{s}{u}") for s in speakers for u in range(4)]
    days = {row.path: f"day{row.id in ('a0', 'a1')}" for row in rows}
    trials = draw_split_trials("test", rows, days, seed=1)
    targets = zip(trials.enrol, trials.test, trials.labels, strict=True)
    assert all({a[0], b[0]} == {"a"} for a, b, label in targets if label)
    told = f"only 1 of {len(speakers)} speakers were recorded in two sessions"
    assert caplog.text.count(told) == n_told


def test_path_from(tmp_path):
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "a.wav").touch()
    for path in ("../a.wav", str(tmp_path / "a.wav"), "deep/../../a.wav"):
        assert path_from(root, path) == "../a.wav"
        assert (root / path_from(root, path)).exists()
    assert path_from(root, f"{root}/deep/b.wav") == "deep/b.wav"
    (tmp_path / "link").symlink_to(root / "deep")
    assert path_from(tmp_path / "link", "b.wav") == "b.wav"
    with pytest.raises(InputError, match="reached through a link, and .*a.wav"):
        path_from(tmp_path / "link", str(tmp_path / "a.wav"))
