"""Reading utterances, against files whose samples tell where they come from."""

import operator
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.lobes.features import Fbank
from torch.utils.data import DataLoader

from local_modules import audio
from local_modules.audio import (
    Normalizer,
    ReadableBatch,
    SpeechCache,
    UtteranceReader,
)
from local_modules.errors import InputError
from tests.recordings import write_streamed_flac

RATE = 16000
SPEEDS = [1.0, 0.9, 1.1]
RAMP = np.arange(3 * RATE) / 2**16  # sample k is k / 65536: a crop shows its start


def write(path, wave, rate=RATE):
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return str(path)


@pytest.fixture
def ramp(tmp_path):
    return write(tmp_path / "ramp.wav", RAMP)


def start_of(wav):
    return round(wav[0].item() * 2**16)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.23457, 3.0])
def test_crop_is_a_stretch_of_the_utterance(ramp, seconds):
    reader = UtteranceReader(RATE, crop_seconds=seconds)
    first, last = 5000, 5000 + max(20000, round(seconds * RATE))
    last = min(last, len(RAMP))
    first = min(first, last - round(seconds * RATE))
    for epoch in range(20):
        reader.set_epoch(epoch)
        wav = reader("u", ramp, first, last)
        start = start_of(wav)
        assert wav.shape == (round(seconds * RATE),)
        assert first <= start and start + len(wav) <= last
        np.testing.assert_array_equal(wav.numpy(), RAMP[start : start + len(wav)])


def test_every_start_is_possible(ramp):
    reader = UtteranceReader(RATE, crop_seconds=1.0)
    starts = set()
    for epoch in range(80):
        reader.set_epoch(epoch)
        starts.add(start_of(reader("u", ramp, 100, 100 + RATE + 3)))
    assert starts == {100, 101, 102, 103}


def test_crop_depends_on_seed_epoch_and_id_alone(ramp):
    def starts(reader, order):
        found = {}
        for epoch, utt_id in order:
            reader.set_epoch(epoch)
            found[epoch, utt_id] = start_of(reader(utt_id, ramp, 0, len(RAMP)))
        return found

    order = [(epoch, utt_id) for epoch in (1, 2, 3) for utt_id in ("a", "b", "ä/1")]
    once = starts(UtteranceReader(RATE, 0.5, seed=7), order)
    torch.rand(3), np.random.rand(3)  # other generators have no say
    again = starts(UtteranceReader(RATE, 0.5, seed=7), order[::-1])
    assert once == again
    assert len(set(once.values())) == len(order)
    other_seed = starts(UtteranceReader(RATE, 0.5, seed=8), order)
    assert not set(once.values()) & set(other_seed.values())


def test_short_utterance_is_repeated(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 7001).astype(np.float32)
    path = write(tmp_path / "short.wav", wave)
    wav = UtteranceReader(RATE, crop_seconds=1.5)("u", path, 0, len(wave))
    np.testing.assert_array_equal(wav.numpy(), np.tile(wave, 4)[:24000])


@pytest.mark.parametrize("rate", [8000, 44100])
def test_stereo_of_another_rate(tmp_path, rate):
    time = np.arange(2 * rate) / rate
    left, right = 0.6 * np.sin(2 * np.pi * 440 * time), 0.2 * np.cos(2000 * time)
    path = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), rate)
    wav = UtteranceReader(RATE)("u", path, 0, len(time)).numpy()
    assert wav.shape == (2 * RATE,)
    time = np.arange(2 * RATE) / RATE
    mono = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.cos(2000 * time)
    np.testing.assert_allclose(wav[200:-200], mono[200:-200], atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_crop_length_is_exact_at_every_rate(tmp_path, rate):
    path = write(
        tmp_path / "noise.wav", np.random.default_rng(0).random(2 * rate), rate
    )
    for seconds in (0.9, 1.23457, 1.9999, 2.5):
        wav = UtteranceReader(RATE, crop_seconds=seconds)("u", path, 0, 2 * rate)
        assert wav.shape == (round(seconds * RATE),)


def test_crop_is_drawn_in_the_files_own_rate(tmp_path):
    # Speech between 1 s and 2 s of a file of 44.1 kHz, silence around it.
    wave = np.zeros(3 * 44100)
    wave[44100:88200] = 0.5
    path = write(tmp_path / "island.wav", wave, 44100)
    reader = UtteranceReader(RATE, crop_seconds=0.5)
    for epoch in range(10):
        reader.set_epoch(epoch)
        wav = reader("u", path, 44100, 88200)
        assert wav.shape == (8000,)
        assert wav[100:-100].min() > 0.45


class TestSpeeds:
    @pytest.mark.parametrize("rate", [16000, 8000, 44100, 48000])
    @pytest.mark.parametrize("crop_seconds", [None, 1.0])
    def test_pitch_and_duration_follow_the_speed(self, rate, crop_seconds, tmp_path):
        time = np.arange(3 * rate) / rate
        path = write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 800 * time), rate)
        reader = UtteranceReader(RATE, crop_seconds, speeds=SPEEDS)
        for epoch in (1, 2, 3):
            reader.set_epoch(epoch)
            wav, speed = reader("u", path, 0, len(time)), reader.speed("u")
            seconds = len(wav) / RATE
            assert seconds == pytest.approx(crop_seconds or 3 / speed, rel=1e-3)
            spectrum = torch.fft.rfft(wav * torch.hann_window(len(wav)), 2**18).abs()
            pitch = spectrum.argmax().item() * RATE / 2**18
            assert pitch == pytest.approx(800 * speed, rel=1e-3)

    def test_a_crop_is_a_longer_or_shorter_stretch_of_the_utterance(self, ramp):
        reader = UtteranceReader(RATE, crop_seconds=1.0, speeds=SPEEDS)
        first, last = 5000, 5000 + round(1.1 * RATE)
        for epoch in range(30):
            reader.set_epoch(epoch)
            wav, speed = reader("u", ramp, first, last), reader.speed("u")
            assert wav.shape == (RATE,)
            source = wav[100:-100].double() * 2**16  # away from the filter's edges
            np.testing.assert_allclose(source.diff().mean(), speed, rtol=1e-3)
            # The filter's gain is within a thousandth of 1.
            assert first - 20 <= source[0] - 100 * speed
            assert source[-1] + 100 * speed <= last + 20

    def test_each_utterance_is_heard_at_each_speed_in_turn(self):
        reader = UtteranceReader(RATE, speeds=SPEEDS)
        order = []
        for epoch in range(1, 7):
            reader.set_epoch(epoch)
            order.append([reader.speed(f"utterance {n}") for n in range(300)])
        for of_utterance in zip(*order, strict=True):
            assert sorted(of_utterance[:3]) == sorted(SPEEDS)
            assert of_utterance[3:] == of_utterance[:3]
        for of_epoch in order:
            assert all(80 < of_epoch.count(speed) < 120 for speed in SPEEDS)

    @pytest.mark.parametrize(
        "speeds", [[], [0.9, 1.1], [1.0, 0], [1.0, 2.5], [1.0, 1.1, 1.1], [1.0, "fast"]]
    )
    def test_wrong_speeds_are_one_line(self, speeds):
        with pytest.raises(InputError, match=r"^--speaker_speeds .*\[1.0,0.9,1.1\]$"):
            UtteranceReader(RATE, speeds=speeds)


def test_start_and_stop_are_honoured(ramp):
    wav = UtteranceReader(RATE)("u", ramp, 1000, 21000)
    np.testing.assert_array_equal(wav.numpy(), RAMP[1000:21000])
    # As they come from a CSV.
    wav = UtteranceReader(RATE)("u", ramp, "1000", "21000")
    np.testing.assert_array_equal(wav.numpy(), RAMP[1000:21000])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("crop_seconds", [None, 0.5])
def test_truncated_file_is_named_and_skipped(tmp_path, caplog, suffix, crop_seconds):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, RATE), RATE)
    reader = UtteranceReader(RATE, crop_seconds)
    assert reader("u", str(path), 8000, RATE) is not None
    assert not caplog.records
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert reader("u", str(path), 8000, RATE) is None
    assert str(path) in caplog.text


def test_wav_cut_inside_the_utterance(ramp, caplog):
    with open(ramp, "r+b") as file:
        file.truncate(100000)  # 25 000 samples of 4 bytes, less the header
    assert UtteranceReader(RATE)("u", ramp, 0, len(RAMP)) is None
    assert ramp in caplog.text
    assert UtteranceReader(RATE)("u", ramp, 0, 20000) is not None


@pytest.mark.parametrize("crop_seconds", [None, 0.5])
def test_undecodable_is_named_and_skipped(tmp_path, caplog, crop_seconds):
    text = tmp_path / "text.wav"
    text.write_text("no audio at all")
    empty = tmp_path / "empty.wav"
    empty.touch()
    missing = tmp_path / "missing.wav"
    for path in (text, empty, missing, tmp_path):
        caplog.clear()
        assert UtteranceReader(RATE, crop_seconds)("u", str(path), 0, 9000) is None
        assert str(path) in caplog.text
        assert len(caplog.records) == 1


def test_a_length_that_no_memory_holds_is_skipped(tmp_path, caplog):
    path = tmp_path / "streamed.flac"
    write_streamed_flac(path, RAMP, RATE)
    for cache in (None, SpeechCache(1.0)):
        caplog.clear()
        reader = UtteranceReader(RATE, cache=cache)
        assert reader("u", str(path), 0, soundfile.info(path).frames) is None
        assert str(path) in caplog.text
        assert reader("u", str(path), 0, RATE) is not None


def test_empty_stretch_is_skipped(ramp, caplog):
    for start, stop in ((500, 500), (501, 500), (len(RAMP), len(RAMP) + 9)):
        for crop_seconds in (None, 0.5):
            assert UtteranceReader(RATE, crop_seconds)("u", ramp, start, stop) is None
    assert len(caplog.records) == 6


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("crop_seconds", [None, 0.5])
def test_memory_changes_nothing(tmp_path, subtype, channels, crop_seconds):
    wave = np.random.default_rng(0).uniform(-1, 1, (20000, channels))
    path = str(tmp_path / "noise.wav")
    soundfile.write(path, wave, RATE, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = expected[1000:19000].mean(axis=1)
    kept, fresh = (
        UtteranceReader(RATE, crop_seconds, seed=4, cache=cache, speeds=SPEEDS)
        for cache in (SpeechCache(1.0), None)
    )
    for epoch in (1, 2, 3):
        kept.set_epoch(epoch)
        fresh.set_epoch(epoch)
        wav = kept("u", path, 1000, 19000)
        assert wav.dtype == torch.float32
        assert torch.equal(wav, fresh("u", path, 1000, 19000))
        if crop_seconds is None and kept.speed("u") == 1:
            np.testing.assert_allclose(wav.numpy(), expected, atol=1e-7)


def test_memory_is_read_once_and_bounded(tmp_path):
    paths = [write(tmp_path / f"{n}.wav", RAMP[: RATE + n]) for n in range(3)]
    # Room for two and a half; another reader shares it.
    cache = SpeechCache(2.5 * 4 * RATE / 2**30)
    reader = UtteranceReader(RATE, 0.5, cache=cache)
    for path in paths:
        assert reader(path, path, 0, RATE) is not None
    for path in paths:
        write(path, np.zeros(RATE))
    for sharing in (reader, UtteranceReader(RATE, cache=cache)):
        sharing.set_epoch(1)
        found = [sharing(path, path, 0, RATE).any().item() for path in paths]
        assert found == [True, True, False]


def test_memory_tells_stretches_of_a_file_apart(ramp):
    reader = UtteranceReader(RATE, cache=SpeechCache(1.0))
    one, other = reader("u", ramp, 0, 500), reader("u", ramp, 500, 1000)
    assert not torch.equal(one, other)
    assert torch.equal(other, UtteranceReader(RATE)("u", ramp, 500, 1000))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_outlive_an_epoch_see_it(ramp, context):
    reader = UtteranceReader(RATE, crop_seconds=0.5, seed=3)
    ids = ["a", "b", "c", "d"]
    loader = DataLoader(
        [partial(reader, utt_id, ramp, 0, len(RAMP)) for utt_id in ids],
        batch_size=None,
        collate_fn=operator.methodcaller("__call__"),
        num_workers=2 if context == "fork" else 1,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    alone = UtteranceReader(RATE, crop_seconds=0.5, seed=3)
    for epoch in (1, 2, 5, 2):
        reader.set_epoch(epoch)
        alone.set_epoch(epoch)
        for utt_id, wav in zip(ids, loader, strict=True):
            assert torch.equal(wav, alone(utt_id, ramp, 0, len(RAMP)))


@pytest.mark.parametrize("sample", [np.nan, np.inf, 1e25, -1e25])
def test_samples_that_are_no_numbers_are_no_recording(tmp_path, sample):
    wave = RAMP.copy()
    wave[100] = sample
    path = write(tmp_path / "broken.wav", wave)
    assert UtteranceReader(RATE)("u", path, 0, len(RAMP)) is None
    assert UtteranceReader(RATE)("u", path, 101, len(RAMP)) is not None


def test_what_is_read_has_finite_features(tmp_path):
    """Also where it is not scaled; what is not read has none."""
    wave = np.random.default_rng(0).uniform(-1, 1, RATE)
    path = write(tmp_path / "loud.wav", wave * 2**31)
    wav = UtteranceReader(RATE)("u", path, 0, RATE)
    fbank = Fbank(sample_rate=RATE, n_mels=80)
    assert wav.abs().max() > 1e9 and fbank(wav[None]).isfinite().all()
    assert fbank(wav[None].sign() * audio.LOUDEST).isfinite().all()
    wav[100] = 1e25
    assert not fbank(wav[None]).isfinite().all()


def test_a_batch_without_what_is_lost():
    lost = [{"id": name, "sig": None} for name in "ab"]
    read = {"id": "c", "sig": torch.ones(3)}
    batch = ReadableBatch([*lost, read])
    assert not batch.is_empty and batch.lost == ["a", "b"] and batch.id == ["c"]
    batch = ReadableBatch(lost)
    assert batch.is_empty and batch.lost == ["a", "b"]


@pytest.mark.parametrize("rate", [44101, 191999, 4001])
def test_a_rate_without_a_common_factor(rate):
    """A tone keeps its pitch and level; torchaudio's table would have gigabytes."""
    times = np.arange(rate) / rate
    tone = np.stack([np.sin(2 * np.pi * 440 * times), np.zeros(rate)], axis=1)
    wav = Normalizer(16000)(torch.from_numpy(tone.astype(np.float32)), rate)
    assert wav.dtype == torch.float32 and len(wav) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # The ends are those of a filter.
    np.testing.assert_allclose(wav[500:-500], expected[500:-500], atol=2e-3)


def test_both_ways_to_resample_agree(monkeypatch):
    wav = torch.from_numpy(np.random.default_rng(0).normal(size=44100)).float()
    wav = torch.nn.functional.avg_pool1d(wav[None], 9, 1, 4)[0]  # few high frequencies
    usual = Normalizer(16000)(wav, 44100)
    monkeypatch.setattr(audio, "MAX_TABLE", 0)
    ours = Normalizer(16000)(wav, 44100)
    inner = slice(500, -500)
    assert (usual - ours)[inner].norm() < 0.05 * usual[inner].norm()
