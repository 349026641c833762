"""Embeddings of files: the same alone, together, in windows and out of the store."""

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.inference.classifiers import EncoderClassifier

from local_modules.errors import InputError, RunError
from local_modules.inference import verification
from local_modules.inference.embedding_store import Embedded, EmbeddingStore
from local_modules.inference.extraction import (
    WINDOW_SECONDS,
    embed_files,
    embed_list,
    stretches_beside,
)
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.speech import Quality
from local_modules.inference.verification import ListeningModel, Voice
from local_modules.manifest import Utterance, write_manifest
from tests.random_models import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeakerModel(str(write_model(tmp_path_factory.mktemp("one") / "model")[0]))


@pytest.fixture
def store(tmp_path):
    store = EmbeddingStore(tmp_path / "cache" / "embeddings.db")
    yield store
    store.close()


@pytest.fixture
def files(tmp_path):
    """Files of 0.6 to 5 seconds, two of them stereo or of another rate."""
    rng = np.random.default_rng(0)
    paths = []
    for number, seconds in enumerate((1.0, 5.0, 0.6, 2.31, 1.7)):
        rate = 8000 if number == 3 else 16000
        shape = (int(seconds * rate), 2) if number == 4 else int(seconds * rate)
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], 0.1 * rng.standard_normal(shape), rate)
    return paths


def alone(model, path):
    return model.embed([model.read(path)])[0].numpy()


def test_together_as_alone(model, store, files):
    found, failures = embed_files(model, [*files, files[0]], store)
    assert not failures and list(found) != [] and set(found) == set(files)
    for path in files:
        np.testing.assert_allclose(found[path].vector, alone(model, path), atol=1e-5)
        info = soundfile.info(path)
        assert found[path].seconds == pytest.approx(info.duration, abs=1e-3)


def test_as_speechbrain_loads_it(model, files, tmp_path):
    theirs = EncoderClassifier.from_hparams(source=model.source, savedir=tmp_path / "s")
    expected = theirs.encode_batch(model.read(files[0]).unsqueeze(0))[0, 0]
    np.testing.assert_allclose(alone(model, files[0]), expected, atol=1e-5)


def test_small_batches_change_nothing(model, store, files, tmp_path):
    together, _ = embed_files(model, files, store)
    other = EmbeddingStore(tmp_path / "other.db")
    one_by_one, _ = embed_files(model, files, other, batch_seconds=0.1)
    for path in files:
        np.testing.assert_allclose(
            together[path].vector, one_by_one[path].vector, atol=1e-5
        )


def test_a_long_file_is_the_mean_of_its_windows(model, store, files):
    found, _ = embed_files(model, files, store, window_seconds=2.0)
    windows = model.read(files[1]).tensor_split(3)
    expected = torch.stack([model.embed([window])[0] for window in windows]).mean(dim=0)
    np.testing.assert_allclose(found[files[1]].vector, expected, atol=1e-5)
    np.testing.assert_allclose(
        found[files[0]].vector, alone(model, files[0]), atol=1e-5
    )


def test_half_a_minute_is_embedded_at_once_as_in_training(model, store, tmp_path):
    path = tmp_path / "long.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(30 * 16000)
    soundfile.write(path, noise * np.linspace(0, 1, len(noise)), 16000)
    found, _ = embed_files(model, [path], store)
    np.testing.assert_allclose(found[path].vector, alone(model, path), atol=1e-5)
    halves, _ = embed_files(model, [path], store, window_seconds=15.0)
    assert np.abs(halves[path].vector - found[path].vector).max() > 1e-3


def test_a_stretch_is_not_the_file(model, store, files):
    path, expected = files[1], model.embed([model.read(files[1])[16000:40000]])[0]
    whole, _ = embed_files(model, files[:2], store)
    for _ in range(2):  # computed, and out of the store
        stretches = {path: (16000, 40000)}
        found, _ = embed_files(model, files[:2], store, stretches=stretches)
        np.testing.assert_allclose(found[path].vector, expected, atol=1e-5)
        assert found[path].seconds == 1.5
        again, _ = embed_files(model, files[:2], store)
        for file in files[:2]:
            np.testing.assert_array_equal(again[file].vector, whole[file].vector)
    found, failures = embed_files(model, [path], store, stretches={path: (9, 80001)})
    assert not found
    assert failures == {path: "has no samples 9 to 80001, only 80000"}


def test_what_a_manifest_beside_a_list_says(tmp_path):
    rows = [
        Utterance("part", 0.5, "part.wav", 8000, 16000, "ann"),
        Utterance("whole", 2.0, "whole.wav", 0, 32000, "ann"),
        Utterance("gone", 0.5, "gone.wav", 8000, 16000, "bob"),
        Utterance("broken", 0.5, "broken.wav", 8000, 16000, "bob"),
    ]
    write_manifest(tmp_path / "test.csv", rows)
    (tmp_path / "valid.csv").write_text("path,sex\na.wav,f\n")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "broken.wav").write_bytes(b"no header")
    for rate, n_less, stretch in (
        (16000, 0, (8000, 16000)),
        (48000, 0, (24000, 48000)),
        (8000, 7, (4000, 8000)),
    ):
        for name in ("part", "whole"):
            silence = np.zeros(2 * rate - n_less)
            soundfile.write(folder / f"{name}.wav", silence, rate)
        found = stretches_beside(tmp_path / "test_trials.txt", folder)
        assert found == {folder / "part.wav": stretch}
    for name in ("valid_trials.txt", "dev_trials.txt", "test.txt", "test.csv"):
        assert stretches_beside(tmp_path / name, folder) == {}


def test_of_a_list_of_training_what_training_compares(model, store, files, tmp_path):
    """Half of the first recording, by its name in the list; all of the second."""
    folder = files[0].parent
    half = soundfile.info(files[0]).frames // 2
    rate = soundfile.info(files[0]).samplerate
    row = Utterance("1", half / rate, files[0].name, 0, half, "ann")
    write_manifest(tmp_path / "test.csv", [row])
    names = [files[0].name, files[1].name, "nothing.wav"]
    listed = names, tmp_path / "test_trials.txt", folder
    found, failures = embed_list(model, *listed, store)
    samples, _ = soundfile.read(files[0], frames=half, dtype="float32")
    (expected,) = model.embed([torch.from_numpy(samples)])
    np.testing.assert_allclose(found[names[0]].vector, expected, atol=1e-5)
    assert found[names[0]].seconds == pytest.approx(half / rate)
    whole, _ = embed_files(model, files[1:2], store)
    assert found[names[1]].seconds == whole[files[1]].seconds
    assert list(failures) == ["nothing.wav"]


def test_embeddings_are_nobody_elses_to_read(store):
    assert store.path.stat().st_mode & 0o077 == 0


def test_what_is_stored_is_not_computed_again(model, store, files, monkeypatch):
    first, _ = embed_files(model, files[:3], store)
    seen = []
    monkeypatch.setattr(
        SpeakerModel, "read", lambda self, path: seen.append(path) or torch.ones(16000)
    )
    again, _ = embed_files(model, files, store)
    assert set(seen) == set(files[3:])
    for path in files[:3]:
        assert np.array_equal(first[path].vector, again[path].vector)
    # Another length of window, and a file that has changed.
    seen.clear()
    os.utime(files[0], ns=(1, 1))
    embed_files(model, files[:1], store)
    embed_files(model, files[1:2], store, window_seconds=3.0)
    assert seen == files[:2]


def test_another_model_never_gets_them(model, store, files, tmp_path):
    """Other weights, or the same weights behind other features."""
    one, _ = embed_files(model, files[:1], store)
    other = SpeakerModel(str(write_model(tmp_path / "other" / "model", seed=7)[0]))
    assert other.fingerprint != model.fingerprint
    two, _ = embed_files(other, files[:1], store)
    assert not np.allclose(one[files[0]].vector, two[files[0]].vector)
    moved = shutil.copytree(model.source, tmp_path / "moved")
    assert SpeakerModel(str(moved)).fingerprint == model.fingerprint
    text = (moved / "hyperparams.yaml").read_text()
    assert "sample_rate: 16000" in text
    (moved / "hyperparams.yaml").write_text(
        text.replace("sample_rate: 16000", "sample_rate: 8000", 1)
    )
    assert SpeakerModel(str(moved)).fingerprint != model.fingerprint


def test_bad_files_are_named_and_the_others_embedded(model, store, files, tmp_path):
    names = "b.wav", "s.wav", "m.wav", "h.raw"
    broken, short, _, headless = bad = [tmp_path / name for name in names]
    broken.write_bytes(b"RIFF of nothing")
    headless.write_bytes(bytes(32000))
    soundfile.write(short, np.zeros(100), 16000)
    found, failures = embed_files(model, [*bad, *files], store)
    assert set(found) == set(files)
    assert set(failures) == {*bad}
    assert failures[headless] == "can't be decoded: raw audio without a header"
    assert all(reason and "\n" not in reason for reason in failures.values())
    np.testing.assert_allclose(
        found[files[2]].vector, alone(model, files[2]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "holds NaN or infinite samples"),
        (-np.inf, "holds NaN or infinite samples"),
        (1e30, "holds samples too large for an embedding"),
    ],
)
def test_an_embedding_that_is_no_number_is_a_failure(
    value, reason, model, store, files, tmp_path
):
    samples, rate = soundfile.read(files[0])
    samples[100] = value
    soundfile.write(tmp_path / "bad.wav", samples, rate, subtype="FLOAT")
    found, failures = embed_files(model, [tmp_path / "bad.wav", *files], store)
    assert failures == {tmp_path / "bad.wav": reason}
    assert set(found) == set(files)
    assert all(np.isfinite(embedded.vector).all() for embedded in found.values())


def test_a_file_of_no_samples_is_a_failure_again_and_again(model, store, tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0), 16000)
    for _ in range(2):
        assert embed_files(model, [path], store) == ({}, {path: "holds no samples"})


def test_names_that_are_not_utf8(model, store, files):
    path = files[0].with_name(os.fsdecode(b"caf\xe9.wav"))
    shutil.copy(files[0], path)
    found, failures = embed_files(model, [path, files[1]], store)
    assert failures == {path: "has a name that is not UTF-8"}
    assert set(found) == {files[1]}


def test_a_killed_batch_leaves_a_whole_store(model, store, files):
    embed_files(model, files[:2], store)

    def dies():
        yield files[2], embed_files(model, files[:1], store)[0][files[0]]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put(model.fingerprint, 20.0, dies(), {files[2]: (1, 1)})
    assert store.get(model.fingerprint, WINDOW_SECONDS, files[2]) is None
    assert store.get(model.fingerprint, WINDOW_SECONDS, files[1]) is not None


def test_a_file_that_changes_while_it_is_embedded(model, store, files, monkeypatch):
    """Replaced after it was read, or gone."""
    changed, gone, stays = (shutil.copy(files[0], store.path.parent / n) for n in "abc")

    def embed(wavs):
        vectors = SpeakerModel.embed(model, wavs)
        Path(changed).write_bytes(Path(files[1]).read_bytes())
        Path(gone).unlink(missing_ok=True)
        return vectors

    monkeypatch.setattr(model, "embed", embed)
    paths = [Path(name) for name in (changed, gone, stays)]
    found, failures = embed_files(model, paths, store)
    assert not failures and len(found) == 3
    monkeypatch.undo()
    found, failures = embed_files(model, paths, store)
    assert list(failures) == [Path(gone)]
    again = model.embed([model.read(files[1])])[0].numpy()
    np.testing.assert_allclose(found[Path(changed)].vector, again, atol=1e-5)


def test_a_file_that_breaks_off_is_not_scored(model, store, files, tmp_path):
    short = tmp_path / "short.wav"
    short.write_bytes(Path(files[0]).read_bytes()[:-5000])
    _, failures = embed_files(model, [short], store)
    assert failures[short].startswith("is truncated to ")


def test_two_processes_use_one_store(model, store, files, tmp_path):
    other = EmbeddingStore(tmp_path / "cache" / "embeddings.db")
    embed_files(model, files[:2], store)
    assert other.get(model.fingerprint, WINDOW_SECONDS, files[1]) is not None
    other.close()
    with sqlite3.connect(tmp_path / "cache" / "embeddings.db") as database:
        assert database.execute("SELECT count(*) FROM embeddings").fetchone() == (2,)


def test_a_place_for_no_store_is_one_line(model, store, files, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "embeddings.db"):
        with pytest.raises(InputError, match="embeddings can't be kept there") as error:
            EmbeddingStore(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    # As on a disk of which nothing but reading is allowed.
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(InputError, match="embeddings.db: embeddings can't be kept"):
        embed_files(model, files[:1], store)


def test_a_full_disk_is_a_run_that_failed(model, store, files):
    """Made so by a limit on the file, of which SQLite says the same."""
    store._database.execute("PRAGMA max_page_count = 2")
    large = Embedded(np.zeros(5000, np.float32), 1.0)
    with pytest.raises(RunError, match="disk is full; make room$") as error:
        store.put(
            model.fingerprint, WINDOW_SECONDS, [(files[0], large)], {files[0]: (1, 1)}
        )
    assert str(error.value).startswith(f"{store.path}: embeddings can't be kept there")
    assert error.value.exit_status == 1


def test_a_damaged_store_is_one_line(model, store, files):
    embed_files(model, files[:1], store)
    store.close()
    octets = store.path.read_bytes()
    # All but the page that says what is in the others.
    store.path.write_bytes(octets[:4096] + bytes([255]) * (len(octets) - 4096))
    with EmbeddingStore(store.path) as damaged, pytest.raises(InputError) as error:
        embed_files(model, files[:1], damaged)
    assert str(error.value).startswith(
        f"{store.path}: embeddings can't be kept there: "
    )
    assert "\n" not in str(error.value)
    store.path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(InputError, match="embeddings.db: .*file is not a database"):
        EmbeddingStore(store.path)


def test_a_store_is_closed_after_its_with(model, store, files):
    with store as same:
        embed_files(model, files[:1], same)
    with pytest.raises(InputError, match="closed"):
        store.get(model.fingerprint, WINDOW_SECONDS, files[0])


def test_the_speech_of_a_file_is_another_embedding_than_the_file(
    voices_folder, store, tmp_path
):
    """Kept in one store, neither is taken for the other."""
    folder = str(write_model(tmp_path / "model")[0])
    word, rate = soundfile.read(next((voices_folder / "test").rglob("*.wav")))
    pause = np.zeros(3 * rate)
    path = tmp_path / "word.wav"
    soundfile.write(path, np.concatenate([pause, word, pause]), rate)
    speech, whole = (
        embed_files(kind(folder), [path], store)[0][path]
        for kind in (ListeningModel, SpeakerModel)
    )
    assert whole.seconds == pytest.approx(6 + len(word) / rate)
    assert speech.seconds < whole.seconds - 5


def test_ratios_weigh_the_seconds_of_speech():
    heard = Voice(np.ones(4, np.float32), Quality(60.0, 2.5, -20.0, 0.0))
    assert verification._recordings([heard]).seconds.tolist() == [2.5]
