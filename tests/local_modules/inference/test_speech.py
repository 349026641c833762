"""What is taken for speech, and what a recording is refused for."""

import os
import tracemalloc

import numpy as np
import pytest
import soundfile

from local_modules.errors import InputError
from local_modules.inference import speech
from local_modules.inference.speech import BLOCK_SECONDS, read_speech

RATE = 16000


def noise(seconds, level, seed=0):
    return np.random.default_rng(seed).normal(0, level, int(seconds * RATE))


@pytest.fixture(scope="module")
def spoken(voices_folder):
    """Some words, one after the other, of a voice of the small corpus."""
    folder = sorted((voices_folder / "test").iterdir())[0]
    words = [soundfile.read(path)[0] for path in sorted(folder.iterdir())]
    fade = np.minimum(1, np.minimum(np.arange(15000), np.arange(15000)[::-1]) / 4000)
    return np.concatenate([word[:15000] * fade for word in words])


def write(path, samples, rate=RATE, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def test_speech_is_kept_and_pauses_are_not(spoken, tmp_path):
    pause = noise(5, 1e-4)
    path = write(tmp_path / "a.wav", np.concatenate([pause, spoken, pause]))
    heard = read_speech(path, RATE)
    assert heard.quality.seconds == pytest.approx(10 + len(spoken) / RATE)
    assert heard.quality.speech_seconds == pytest.approx(len(spoken) / RATE, abs=0.5)
    assert len(heard.samples) == round(heard.quality.speech_seconds * RATE)
    alone = 20 * np.log10(np.sqrt(np.mean(spoken**2)))
    assert heard.quality.level_db == pytest.approx(alone, abs=1)
    assert heard.quality.clipped == 0


def test_a_long_recording_is_read_in_blocks(spoken, tmp_path):
    """Speech in the third minute, of the same samples as alone."""
    path = write(tmp_path / "a.flac", np.concatenate([noise(150, 1e-5), spoken]))
    alone = read_speech(write(tmp_path / "b.flac", spoken), RATE)
    heard = read_speech(path, RATE)
    assert heard.quality.seconds > 150
    assert heard.quality.speech_seconds == pytest.approx(
        alone.quality.speech_seconds, abs=0.2
    )


def test_pauses_are_not_kept_in_memory(spoken, monkeypatch):
    """Ten minutes with two seconds of speech in each block."""
    n_blocks, block = 20, noise(BLOCK_SECONDS, 1e-5).astype(np.float32)
    block[:30000] = spoken[:30000]
    # Of numpy, whose memory is counted.
    blocks = (block.copy() for _ in range(n_blocks))
    monkeypatch.setattr(speech, "_blocks", lambda *arguments: blocks)
    tracemalloc.start()
    try:
        heard = read_speech("a.wav", RATE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 20000 * n_blocks < len(heard.samples) < 40000 * n_blocks
    assert peak < n_blocks * block.nbytes / 2


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000])
def test_any_rate_and_two_channels(rate, spoken, tmp_path):
    import torch
    import torchaudio

    at_rate = torchaudio.functional.resample(torch.from_numpy(spoken), RATE, rate)
    stereo = np.stack([at_rate, at_rate], axis=1)
    heard = read_speech(write(tmp_path / "a.wav", stereo, rate), RATE)
    assert heard.quality.speech_seconds == pytest.approx(len(spoken) / RATE, abs=0.5)


def test_clipping_is_seen(spoken, tmp_path):
    loud = np.clip(8 * spoken, -1, 1)
    heard = read_speech(write(tmp_path / "a.wav", loud), RATE)
    assert heard.quality.clipped == pytest.approx(
        (np.abs(loud) >= 0.999).mean(), abs=0.03
    )


time = np.arange(4 * RATE) / RATE
NO_SPEECH = {
    "silence": (np.zeros(4 * RATE), "silence"),
    "hiss": (noise(4, 1e-4), "too quiet"),
    "white noise": (noise(4, 0.1), "no speech"),
    "hum": (0.3 * np.sin(2 * np.pi * 50 * time), "no speech"),
    "tone": (0.3 * np.sin(2 * np.pi * 440 * time), "no speech"),
    "constant": (np.full(4 * RATE, 0.5), "of speech|no speech"),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech(name, tmp_path):
    samples, words = NO_SPEECH[name]
    path = write(tmp_path / "a.wav", samples)
    with pytest.raises(InputError, match=words) as error:
        read_speech(path, RATE)
    assert str(error.value).startswith(f"{path}: ")


def test_too_little_speech(spoken, tmp_path):
    path = write(tmp_path / "a.wav", spoken[2000:7000])
    with pytest.raises(InputError, match="s of speech; 0.5 s are needed"):
        read_speech(path, RATE)


def test_what_can_not_be_read(spoken, tmp_path):
    good = write(tmp_path / "good.wav", spoken).read_bytes()
    flac = write(tmp_path / "good.flac", spoken).read_bytes()
    nan = spoken.copy()
    nan[100] = np.nan
    files = {
        "empty.wav": (b"", "is empty"),
        "text.wav": (b"these are words\n" * 50, "can't be decoded"),
        "header.wav": (good[:40], "can't be decoded|holds no samples"),
        "cut.wav": (good[: len(good) // 2], "is truncated to 49 %"),
        "cut.flac": (flac[: len(flac) // 2], "can't be decoded|is truncated"),
        "noise.ogg": (bytes(range(256)) * 40, "can't be decoded"),
        "a.raw": (bytes(1000), "can't be decoded: raw audio without a header"),
    }
    for name, (octets, words) in files.items():
        (tmp_path / name).write_bytes(octets)
        with pytest.raises(InputError, match=words):
            read_speech(tmp_path / name, RATE)
    cases = [
        (
            write(tmp_path / "nan.wav", nan, subtype="FLOAT"),
            "holds NaN or infinite samples",
        ),
        (write(tmp_path / "8.wav", np.stack([spoken] * 8, 1)), "has 8 channels"),
        (write(tmp_path / "slow.wav", spoken, 1), "sample rate of 1 Hz"),
        (write(tmp_path / "fast.wav", spoken, 384_000), "sample rate of 384000 Hz"),
        (write(tmp_path / "none.wav", spoken[:0]), "holds no samples"),
        (tmp_path, "is a folder"),
        (tmp_path / "nothing.wav", "No such file"),
    ]
    os.mkfifo(tmp_path / "pipe")
    cases.append((tmp_path / "pipe", "not a regular file"))
    for path, words in cases:
        with pytest.raises(InputError, match=words) as error:
            read_speech(path, RATE)
        assert "\n" not in str(error.value)


def test_the_header_of_a_pipe_is_no_break(spoken, tmp_path):
    """Programs that write WAV to a pipe can't go back to fill in its length."""
    octets = bytearray(write(tmp_path / "a.wav", spoken).read_bytes())
    at = octets.index(b"data") + 4
    octets[4:8] = octets[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "b.wav").write_bytes(octets)
    one, other = (read_speech(tmp_path / name, RATE) for name in ("a.wav", "b.wav"))
    assert one.quality.speech_seconds == other.quality.speech_seconds


def broken(octets, rng):
    """What becomes of a file on its way: cut short, or some of its bytes changed, most
    often in its header."""
    octets = bytearray(octets)
    if rng.random() < 0.4:
        return octets[: rng.integers(len(octets))]
    span = 60 if rng.random() < 0.7 else len(octets)
    for place in rng.integers(span, size=rng.integers(1, 12)):
        octets[place] = rng.integers(256)
    return octets


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_fifty_broken_files_of_each_kind(suffix, spoken, tmp_path):
    """Speech, or one line that names the file: nothing else comes of any of them."""
    good = write(tmp_path / f"good.{suffix}", spoken).read_bytes()
    rng = np.random.default_rng(len(suffix) + ord(suffix[0]))
    path, n_refused = tmp_path / f"bad.{suffix}", 0
    for octets in [good[:10], *(broken(good, rng) for _ in range(50))]:
        path.write_bytes(octets)
        try:
            heard = read_speech(path, RATE)
            assert heard.samples.isfinite().all() and heard.quality.speech_seconds > 0
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            n_refused += 1
    assert n_refused  # how many is the decoder's business: MP3's finds its way back
