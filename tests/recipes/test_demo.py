"""The demo corpus: the same everywhere, whole or absent, and speech."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local_modules.errors import InputError, RunError
from recipes.demo import prepare as module
from recipes.demo.espeak import Espeak
from recipes.demo.prepare import prepare
from recipes.demo.sentences import SPLITS, draw_sentence, split_of
from recipes.demo.session import PEAK, SAMPLE_RATE, SNR_DB, draw_session
from recipes.demo.voices import add_breath, draw_voice, fit_tract

TINY = {"train_speakers": 4, "valid_speakers": 2, "test_speakers": 2, "utterances": 3}
MANIFESTS = [f"{split}.csv" for split in SPLITS]
VARIANT = "language variant\nname drawn\npitch 90 120\n"
TEXT = "the farmer opened a large window"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    prepare(str(folder / "data"), str(folder / "save"), **TINY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus that its user sees, by its path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((str(path.relative_to(folder)), path) for path in paths)
    return {name: path.read_bytes() for name, path in named if "/." not in name}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noise_stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_same_seed_same_bytes_whatever_the_processes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cpu_count", lambda: 3)
    prepare(str(tmp_path / "data"), str(tmp_path / "save"), **TINY)
    assert contents(tmp_path) == contents(corpus)


def test_other_seed_other_bytes(corpus, tmp_path):
    prepare(
        str(tmp_path / "data"), str(tmp_path / "save"), **{**TINY, "corpus_seed": 7}
    )
    name = "data/train/train0000/001.wav"
    assert contents(tmp_path)[name] != contents(corpus)[name]


def test_more_training_speakers_leave_the_test_speakers_alone(corpus, tmp_path):
    prepare(
        str(tmp_path / "data"), str(tmp_path / "save"), **{**TINY, "train_speakers": 2}
    )
    assert contents(tmp_path)["save/test.csv"] == contents(corpus)["save/test.csv"]
    name = "data/test/test0001/003.wav"
    assert contents(tmp_path)[name] == contents(corpus)[name]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_goes_on(sign, tmp_path):
    settings = {**TINY, "train_speakers": 12, "utterances": 4}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(str(whole / "data"), str(whole / "save"), **settings)

    call = f"prepare({str(broken / 'data')!r}, {str(broken / 'save')!r}, **{settings})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from recipes.demo.prepare import prepare; {call}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (finished := list(broken.glob("data/train/train*"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sign)
    errors = process.communicate()[1]

    assert process.returncode != 0
    assert not list(broken.rglob("*.csv.*")) and not list(broken.glob("save/*"))
    kept = {path: path.stat().st_mtime_ns for path in finished}
    if sign == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1  # the parent's, not the workers'
        assert not list(broken.glob("data/.partial-*"))

    prepare(str(broken / "data"), str(broken / "save"), **settings)
    assert contents(broken) == contents(whole)
    assert kept == {path: path.stat().st_mtime_ns for path in finished}
    assert not list(broken.glob("data/.partial-*"))


def test_finished_corpus_is_left_alone(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_synthesise", None)
    prepare(str(corpus / "data"), str(tmp_path), **TINY)
    for name in (*MANIFESTS, "metadata.csv"):
        assert (tmp_path / name).read_bytes() == (corpus / "save" / name).read_bytes()


def test_other_settings_are_refused_in_one_line(corpus, tmp_path):
    with pytest.raises(InputError, match=r"other settings.*--data_folder") as caught:
        prepare(str(corpus / "data"), str(tmp_path), **{**TINY, "corpus_seed": 7})
    assert str(corpus / "data") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_speakers_are_refused(tmp_path):
    with pytest.raises(InputError, match="valid_speakers: 0"):
        prepare(str(tmp_path), str(tmp_path), valid_speakers=0)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        prepare(str(tmp_path / "file"), str(tmp_path), **TINY)


def test_a_transcript_that_is_gone_is_named_and_made_again(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    data, save = (str(tmp_path / "copy" / name) for name in ("data", "save"))
    speaker = Path(data, "train", "train0001")
    (speaker / "transcript.csv").unlink()
    with pytest.raises(RunError) as caught:
        prepare(data, save, **TINY)
    assert str(caught.value) == (
        f"{speaker}/transcript.csv: cannot be read: No such file or directory; delete "
        "its folder, and the same command makes it again"
    )
    shutil.rmtree(speaker)
    prepare(data, save, **TINY)
    assert contents(tmp_path / "copy") == contents(corpus)


def test_manifests_fit_the_audio(corpus):
    for split in SPLITS:
        manifest = rows(corpus / "save" / f"{split}.csv")
        assert len(manifest) == TINY[f"{split}_speakers"] * TINY["utterances"]
        for row in manifest:
            assert row["wav"].startswith("$data_root/")
            path = row["wav"].replace("$data_root", str(corpus / "data"))
            info = soundfile.info(path)
            assert (info.samplerate, info.channels) == (SAMPLE_RATE, 1)
            assert (info.format, info.subtype) == ("WAV", "PCM_16")
            assert (int(row["start"]), int(row["stop"])) == (0, info.frames)
            assert float(row["duration"]) == info.frames / SAMPLE_RATE


def test_audio_is_neither_short_nor_long_nor_clipped_nor_silent(corpus):
    for path in corpus.glob("data/*/*/*.wav"):
        wave, _ = soundfile.read(path)
        assert 2 <= len(wave) / SAMPLE_RATE <= 4.5
        assert np.abs(wave).max() < 0.96
        assert -50 < 20 * np.log10(np.std(wave)) < -10


def test_no_speaker_and_no_text_in_two_splits(corpus):
    speakers = {
        split: {row["spk_id"] for row in rows(corpus / "save" / f"{split}.csv")}
        for split in SPLITS
    }
    metadata = rows(corpus / "save" / "metadata.csv")
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values()))
    assert {row["speaker"]: row["split"] for row in metadata} == {
        speaker: split for split in SPLITS for speaker in speakers[split]
    }
    split_of_id = {
        row["ID"]: split
        for split in SPLITS
        for row in rows(corpus / "save" / f"{split}.csv")
    }
    transcripts = [
        row for path in corpus.glob("data/*/*/transcript.csv") for row in rows(path)
    ]
    assert {row["ID"] for row in transcripts} == set(split_of_id)
    assert all(split_of(row["text"]) == split_of_id[row["ID"]] for row in transcripts)


@pytest.mark.parametrize("split", SPLITS)
def test_thousands_of_sentences(split):
    rng = np.random.default_rng(0)
    texts = {draw_sentence(split, rng) for _ in range(4000)}
    assert len(texts) > 3900
    assert all(text == " ".join(text.split()) and not text.isupper() for text in texts)


def test_utterance_does_not_depend_on_what_was_said_before():
    rough = VARIANT + "roughness 5\nflutter 9\n"
    with Espeak() as espeak:
        alone = espeak.speak(TEXT, rough, "gmw/en-US", 170)
        espeak.speak("something else", VARIANT, "gmw/en", 130)
        again = espeak.speak(TEXT, rough, "gmw/en-US", 170)
    np.testing.assert_array_equal(alone, again)


def test_thousands_of_voices_in_one_process():
    """eSpeak's own list ends at some hundred voices."""
    rng = np.random.default_rng(0)
    with Espeak() as espeak:
        for _ in range(500):
            voice = draw_voice(rng)
            wave = espeak.speak("yes", voice.variant(), voice.accent, 170)
            assert np.abs(wave).max() > 0.01


def centre_of_power(wave: np.ndarray, low: float, high: float) -> float:
    """Centre of gravity in Hz of the long-term power between two frequencies."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    inside = (low <= hertz) & (hertz <= high)
    return float(np.sum(hertz[inside] * power[inside]) / np.sum(power[inside]))


def test_tract_scale_moves_formants_and_keeps_pitch_and_tempo():
    voice = replace(
        draw_voice(noise_stream(1)),
        pitch=110,
        pitch_range=0.1,
        timbre=("flutter 0", "roughness 0"),
    )
    centres, pitches, lengths = [], [], []
    with Espeak() as espeak:
        for tract in (0.9, 1.3):
            variant = replace(voice, tract=tract).variant()
            rate = round(170 / tract)
            sentence = espeak.speak(TEXT, variant, "gmw/en-US", rate)
            vowel = fit_tract(espeak.speak("aaah", variant, "gmw/en-US", rate), tract)
            middle = vowel[len(vowel) // 3 :][:3200]
            lags = np.correlate(middle, middle, "full")[len(middle) - 1 :]
            centres.append(centre_of_power(middle, 300, 3000))
            pitches.append(SAMPLE_RATE / (80 + np.argmax(lags[80:250])))
            lengths.append(len(fit_tract(sentence, tract)))
    assert 1.2 < centres[1] / centres[0] < 1.7
    assert pitches[0] == pytest.approx(pitches[1], rel=0.1)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_breath_is_as_loud_as_stated_and_silent_in_pauses():
    voiced = np.sin(np.arange(SAMPLE_RATE) / 20)
    wave = np.concatenate((voiced, np.zeros(SAMPLE_RATE)))
    noise = add_breath(wave, 0.1, noise_stream(0)) - wave
    assert np.std(noise[:SAMPLE_RATE]) == pytest.approx(0.1 * np.std(voiced), rel=0.05)
    assert np.abs(noise[SAMPLE_RATE + 100 :]).max() < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_inside_the_stated_range(seed):
    speech = noise_stream(100).standard_normal(3 * SAMPLE_RATE)
    session = draw_session(noise_stream(seed))
    noisy = session.record(speech, noise_stream(seed))
    clean = replace(session, snr_db=200).record(speech, noise_stream(seed))
    gain = np.dot(noisy, clean) / np.dot(clean, clean)
    noise = noisy - gain * clean
    snr_db = 20 * np.log10(gain * np.std(clean) / np.std(noise))
    assert SNR_DB[0] - 0.3 < snr_db < SNR_DB[1] + 0.3
    assert snr_db == pytest.approx(session.snr_db, abs=0.3)
    assert np.abs(noisy).max() <= PEAK + 1e-9


def test_reverberation_decays_as_stated():
    session = replace(draw_session(noise_stream(0)), rt60=0.4)
    room = session._room(noise_stream(0))
    energy = np.cumsum(room[:0:-1] ** 2)[::-1]
    decay = 10 * np.log10(energy / energy[0])
    thirty = np.argmax(decay < -30) / SAMPLE_RATE
    assert thirty == pytest.approx(0.2, abs=0.02)
    direct_db = 10 * np.log10(room[0] ** 2 / np.sum(room[1:] ** 2))
    assert direct_db == pytest.approx(session.direct_db)


def test_voices_differ_and_groups_overlap():
    voices = [draw_voice(noise_stream(seed)) for seed in range(400)]
    pitch = {
        sex: [voice.pitch for voice in voices if voice.sex == sex]
        for sex in ("male", "female", "child")
    }
    assert np.median(pitch["male"]) < np.median(pitch["female"])
    assert max(pitch["male"]) > min(pitch["female"])
    assert max(pitch["female"]) > min(pitch["child"])
    assert len({voice.variant() for voice in voices}) == 400


def test_nobody_sounds_the_same_twice_but_stays_close():
    voice = draw_voice(noise_stream(0))
    days = [voice.vary(noise_stream(seed)) for seed in range(200)]
    for habit, spread in (("pitch", 0.08), ("tract", 0.012), ("rate", 0.07)):
        drift = np.log([getattr(day, habit) / getattr(voice, habit) for day in days])
        assert np.std(drift) == pytest.approx(spread, rel=0.2)
        assert abs(np.mean(drift)) < spread / 3
    assert {day.timbre for day in days} == {voice.timbre}


def test_missing_espeak_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match="pip install espeakng-loader"):
        Espeak()


def test_deep_folders_do_not_matter(tmp_path):
    deep = tmp_path.joinpath(*["a_rather_long_folder_name"] * 10)
    prepare(str(deep), str(deep), 1986, 2, 2, 2, 2)
    assert os.path.exists(deep / "train.csv")
