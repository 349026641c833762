"""Two hundred files that are no recordings of speech, given to every command of
speaker.py that listens: each a line that names it, none a traceback, none a score."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

import speaker
from local_modules.inference import verification

RATE = 16000
# Those that declare their length, or whose pages do. What is left of the others is a
# shorter recording.
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "24.wav": ("WAVEX", "PCM_24"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
# What the decoder of MP3 says by itself, and how far it is.
ASIDE = ("[src/libmpg123", "Note: ", "Warning: Xing stream size", "Embedding with ")
SHARES = (0.0, 0.001, 0.01, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.97)


def encoded(samples, rate=RATE, kind=("WAV", "PCM_16")):
    octets = io.BytesIO()
    soundfile.write(octets, samples, rate, format=kind[0], subtype=kind[1])
    return octets.getvalue()


def wav(fmt, data, declared=None):
    """A WAV file by hand."""
    chunk = b"data" + struct.pack("<I", len(data) if declared is None else declared)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + chunk + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def fmt(tag=1, channels=1, rate=RATE, bits=16):
    block = channels * bits // 8
    rates = (rate, rate * block % 2**32, block % 2**16, bits)
    return struct.pack("<HHIIHH", tag, channels, *rates)


def cut_short(words):
    """Files of many kinds that break off at many places."""
    for name, kind in KINDS.items():
        whole = encoded(words, kind=kind)
        for share in SHARES:
            yield f"{share}.{name}", whole[: int(share * len(whole))]


def wrong_headers(words):
    """WAV files that are sound but for what their header says."""
    pcm = (words * 32767).astype("<i2").tobytes()
    for channels in (0, 3, 8, 64, 65535):
        yield f"{channels} channels.wav", wav(fmt(channels=channels), pcm)
    for rate in (0, 1, 10, 3999, 192_001, 384_000, 2**31, 2**32 - 1):
        yield f"{rate} Hz.wav", wav(fmt(rate=rate), pcm)
    for bits in (0, 33, 128, 65535):
        yield f"{bits} bits.wav", wav(fmt(bits=bits), pcm)
    for tag in (0, 0x0A0B, 0x55, 0x161, 0x7777, 0xFFFF):
        yield f"format {tag}.wav", wav(fmt(tag=tag), pcm)
    for declared in (len(pcm) + 2, 2 * len(pcm), 10**9):
        yield f"{declared} octets.wav", wav(fmt(), pcm, declared)
    whole = wav(fmt(), pcm)
    for place, what in ((0, b"JUNK"), (8, b"EVAW"), (12, b"tmf "), (36, b"atad")):
        name = f"{what.decode().strip()} for a name.wav"
        yield name, whole[:place] + what + whole[place + 4 :]
    for size in (0, 2, 15, 2**31 - 1, 2**32 - 1):
        yield f"fmt of {size}.wav", whole[:16] + struct.pack("<I", size) + whole[20:]


def no_numbers(words):
    """Floats that are none, one among many or all, or too large to compute with."""
    yield "too large.wav", encoded(1e30 * words, kind=KINDS["float.wav"])
    for value in (np.nan, np.inf, -np.inf):
        for kind in (KINDS["float.wav"], ("WAV", "DOUBLE"), ("AIFF", "FLOAT")):
            for places in (0, 7000, -1, slice(None)):
                samples = words.copy()
                samples[places] = value
                yield f"{value}{kind}{places}.wav", encoded(samples, kind=kind)


def no_audio():
    """What stands under an audio file's name and never was one."""
    rng = np.random.default_rng(0)
    words = "these are words, and no recording of them\n"
    yield "no octets.wav", b""
    yield "zeros.wav", bytes(100_000)
    yield "a page.mp3", f"<!doctype html><title>404</title>{words}".encode()
    yield "a program.flac", b"\x7fELF\x02\x01\x01" + bytes(5000)
    yield "a picture.wav", b"\x89PNG\r\n\x1a\n" + rng.bytes(5000)
    yield "a pickle.wav", b"\x80\x04cposix\nsystem\n."
    yield "a name alone.ogg", b"OggS"
    yield "no header.raw", bytes(100_000)
    for suffix in ("wav", "flac", "ogg", "aiff", "au", "caf"):
        yield f"words.{suffix}", (words * 100).encode()
        yield f"noise.{suffix}", rng.bytes(20_000)


def no_speech(words):
    """Sound recordings with nothing in them to be scored."""
    rng, time = np.random.default_rng(0), np.arange(3 * RATE) / RATE
    yield "no samples.wav", encoded(words[:0])
    yield "one sample.wav", encoded(words[:1])
    yield "an instant.wav", encoded(words[2000:4000])
    yield "silence.flac", encoded(np.zeros(3 * RATE), kind=KINDS["flac"])
    yield "faint.wav", encoded(0.002 * words)
    yield "noise.wav", encoded(0.1 * rng.standard_normal(3 * RATE))
    yield "hum.wav", encoded(0.3 * np.sin(2 * np.pi * 50 * time))
    yield "constant.wav", encoded(np.full(3 * RATE, 0.5))
    yield "8 channels.wav", encoded(np.stack([words] * 8, axis=1))


@pytest.fixture(scope="module")
def words(voices_folder):
    """Somebody's words, loud enough."""
    paths = sorted((voices_folder / "test" / "test0").iterdir())
    return np.concatenate([soundfile.read(path)[0] for path in paths[:3]])


@pytest.fixture(scope="module")
def broken(words, tmp_path_factory):
    """All of them."""
    folder = tmp_path_factory.mktemp("broken")
    makers = (cut_short, wrong_headers, no_numbers, no_speech)
    files = dict(no_audio())
    for maker in makers:
        files |= maker(words)
    for name, octets in files.items():
        (folder / name).write_bytes(octets)
    (folder / "a folder.wav").mkdir()
    os.mkfifo(folder / "a pipe.wav")
    (folder / "round and round.wav").symlink_to("round and round.wav")
    (folder / "to nowhere.wav").symlink_to("nothing.wav")
    (folder / "to a device.wav").symlink_to("/dev/zero")
    # Two hours of silence, of which the disk holds the header.
    with open(folder / "hours.wav", "wb") as file:
        file.write(wav(fmt(), b"", 2 * 3600 * RATE * 2))
        file.truncate(file.tell() + 2 * 3600 * RATE * 2)
    paths = sorted(folder.iterdir())
    assert len(paths) >= 200
    return paths


@pytest.fixture
def command(tmp_path, monkeypatch, capfd, trained_run):
    """A function that runs a command with a model that is loaded already, and gives
    what the command has said to whom."""
    model = trained_run / "model"
    verifier = verification.Verifier(model)
    monkeypatch.setattr(verification, "Verifier", lambda *source: verifier)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        arguments = [f"{argument}" for argument in arguments]
        status = speaker.main([*arguments, "--model", f"{model}"])
        shown = capfd.readouterr()
        lines = filter(None, shown.err.splitlines())
        return status, shown.out, [line for line in lines if not line.startswith(ASIDE)]

    return run


@pytest.mark.parametrize(
    "name, more",
    [
        ("verify", ["GOOD"]),
        ("identify", ["--voices", "voices.db", "--json"]),
    ],
)
def test_no_score(name, more, broken, command, voices_folder):
    good = voices_folder / "test" / "test0" / "0.wav"
    more = [good if word == "GOOD" else word for word in more]
    for path in broken:
        status, said, errors = command(name, path, *more)
        assert (status, said) == (2, ""), path
        (line,) = errors
        assert line.startswith(f"speaker.py: {path}: ") and "Traceback" not in line
        assert len(line) < len(f"{path}") + 200


def test_no_voice(broken, command, tmp_path, voices_folder):
    good = voices_folder / "test" / "test0" / "0.wav"
    given = [(path, good) for path in broken] + [(good, broken[0])]
    for path, other in given:
        status, said, (line,) = command(
            "enroll", "ann", path, other, "--voices", "v.db"
        )
        assert (status, said) == (2, "")
        assert line.startswith((f"speaker.py: {path}: ", f"speaker.py: {broken[0]}: "))
    assert not (tmp_path / "v.db").exists()


def test_no_embedding(broken, command, tmp_path, voices_folder):
    broken = [path for path in broken if not path.is_dir()]
    status, said, errors = command("embed", *broken, "-o", "out.npy")
    *left_out, last = errors
    assert (status, said) == (1, "") and not list(tmp_path.iterdir())
    assert last == f"speaker.py: none of {len(broken)} recordings could be embedded"
    found = sorted(line.split(": ")[1] for line in left_out)
    assert found == [f"{path}" for path in broken]
    # Nor do they stand in the way of a good one.
    good = voices_folder / "test" / "test0" / "0.wav"
    status, said, _ = command("embed", *broken, good, "-o", "out.npy")
    assert said == f"1 embeddings in out.npy; {len(broken)} left out\n"
    assert len(np.load(tmp_path / "out.npy")) == 1
