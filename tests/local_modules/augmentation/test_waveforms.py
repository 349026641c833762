"""Noise and reverb: against what was asked of them, and numpy."""

import numpy as np
import pytest
import soundfile
import torch
from scipy import stats
from speechbrain.augment import time_domain

from local_modules.augmentation.waveforms import (
    AddNoise,
    AddReverb,
    ColouredNoise,
    DropChunk,
    RecordedNoise,
)
from local_modules.errors import InputError

RATE = 16000


def rms(x):
    return x.double().square().mean(dim=1).sqrt()


def speech_like(batch=4, n_samples=RATE):
    generator = torch.Generator().manual_seed(1)
    level = torch.logspace(-3, 0, batch).unsqueeze(1)
    return level * torch.randn(batch, n_samples, generator=generator)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`noise`, with a sweep of 25 s, which is two stretches; `rooms`, with ten
    responses."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("noise", "rooms"):
        (root / name).mkdir()
    time = np.arange(25 * RATE) / RATE
    sweep = 0.5 * np.sin(2 * np.pi * (100 + 100 * time) * time)
    soundfile.write(root / "noise" / "sweep.wav", sweep, RATE)
    rng = np.random.default_rng(0)
    for number in range(10):
        response = 0.1 * rng.standard_normal(3000) * np.exp(-np.arange(3000) / 800)
        response[0] = 1.0
        path = root / "rooms" / f"{number}.wav"
        soundfile.write(path, response, RATE, "FLOAT")
    return root


def modules(folders):
    return {
        "coloured noise": AddNoise(RATE),
        "recorded noise": AddNoise(RATE, str(folders / "noise")),
        "simulated rooms": AddReverb(RATE),
        "recorded rooms": AddReverb(RATE, str(folders / "rooms")),
        "silence": DropChunk(),
    }


@pytest.mark.parametrize("snr", [None, (5, 15)])
def test_signal_to_noise_ratio_is_drawn_from_its_range(snr, folders):
    """Of the noise that is asked for, or of the kind that a folder has."""
    torch.manual_seed(0)
    wavs = speech_like(200, 4000)
    add, (low, high) = AddNoise(RATE, str(folders / "noise")), (0, 15)
    if snr:
        add.source, (low, high) = ColouredNoise(*snr), snr
    noise = add(wavs) - wavs
    found = 20 * torch.log10(rms(wavs) / rms(noise)).numpy()
    assert found.min() > low - 0.01 and found.max() < high + 0.01
    assert stats.kstest((found - low) / (high - low), "uniform").pvalue > 0.001


def test_coloured_noise_falls_as_the_power_of_frequency():
    """Log power over log frequency falls by alpha, which is drawn from its range."""
    torch.manual_seed(0)
    noise, _ = ColouredNoise(alpha_high=3.0)(torch.zeros(150, 8192))
    power = np.abs(np.fft.rfft(noise.double().numpy())[:, 10:4000]) ** 2
    log_frequency = np.log(np.arange(10, 4000))
    slopes = -np.polyfit(log_frequency, np.log(power).T, 1)[0]
    assert slopes.min() > -0.2 and slopes.max() < 3.2
    assert stats.kstest(slopes / 3, "uniform").pvalue > 0.001


def test_white_noise_where_alpha_is_zero():
    torch.manual_seed(0)
    noise, _ = ColouredNoise(alpha_high=0.0)(torch.zeros(1, 65536))
    low, high = np.split(np.abs(np.fft.rfft(noise.double().numpy())[0, 1:]) ** 2, 2)
    assert low.mean() == pytest.approx(high.mean(), rel=0.05)
    assert stats.kstest(noise[0] / noise.std(), "norm").pvalue > 0.001


def test_recorded_noise_is_a_stretch_of_the_recording(folders):
    """A sweep's instantaneous frequency tells where it comes from."""
    torch.manual_seed(0)
    source = RecordedNoise(str(folders / "noise"), RATE)
    noise, _ = source(torch.zeros(300, 4000))
    crossings = (noise[:, 1:].sign() != noise[:, :-1].sign()).sum(dim=1)
    # The sweep's frequency is 100 + 200 t.
    seconds = (crossings / 2 / 4000 * RATE - 100) / 200 - 0.125
    assert seconds.min() > -0.1 and seconds.max() < 19.9
    assert stats.kstest(seconds / 19.75, "uniform").pvalue > 0.001
    read, _ = soundfile.read(folders / "noise" / "sweep.wav", dtype="float32")
    row = noise[0].numpy() / noise[0].norm().item()
    likeness = np.correlate(read[: 21 * RATE : 1], row, "valid")
    place = likeness.argmax()
    stretch = read[place : place + 4000]
    assert likeness[place] / np.linalg.norm(stretch) > 0.9999


def test_crops_longer_than_a_stretch_repeat_it(folders):
    source = RecordedNoise(str(folders / "noise"), RATE)
    noise, _ = source(torch.zeros(2, 23 * RATE))
    assert noise.shape == (2, 23 * RATE)
    assert torch.equal(noise[:, : 10 * RATE], noise[:, 10 * RATE : 20 * RATE])
    assert torch.equal(noise[:, : 3 * RATE], noise[:, 20 * RATE :])


def test_kinds_are_equally_probable(tmp_path):
    for kind, level in (("noise", 0.1), ("music", 0.2)):
        (tmp_path / kind).mkdir()
        for number in range(1 if kind == "noise" else 9):
            wave = np.full(RATE, level) * (1 if kind == "noise" else -1)
            soundfile.write(tmp_path / kind / f"{number}.wav", wave, RATE)
    torch.manual_seed(0)
    noise, snr = RecordedNoise(str(tmp_path), RATE)(torch.zeros(1000, 10))
    is_music = noise[:, 0] < 0
    assert 450 < is_music.sum() < 550
    assert snr[is_music].min() >= 5 and snr[~is_music].min() < 1


@pytest.mark.parametrize("n_samples", [2000, RATE])
def test_reverb_is_a_convolution(n_samples, folders):
    """Of each crop with one response, whichever is the longer; nothing wraps around."""
    wavs = speech_like(16, n_samples)
    torch.manual_seed(3)
    out = AddReverb(RATE, str(folders / "rooms"))(wavs).double().numpy()
    responses = [
        soundfile.read(path)[0] for path in sorted((folders / "rooms").iterdir())
    ]
    chosen = set()
    for before, after in zip(wavs.double().numpy(), out, strict=True):
        before, after = (wave / np.linalg.norm(wave) for wave in (before, after))
        likely = [np.convolve(before, response)[:n_samples] for response in responses]
        distances = [
            np.abs(wave / np.linalg.norm(wave) - after).max() for wave in likely
        ]
        assert min(distances) < 1e-6
        chosen.add(np.argmin(distances))
    assert len(chosen) > 4


def test_a_wrong_folder_is_known_before_training():
    for module in (AddNoise, AddReverb):
        with pytest.raises(InputError, match="/nowhere: does not exist"):
            module(RATE, "/nowhere")


KINDS = [
    *("coloured noise", "recorded noise", "simulated rooms", "recorded rooms"),
    "silence",
]


@pytest.mark.parametrize("kind", KINDS)
class TestEach:
    @pytest.fixture
    def augment(self, kind, folders):
        return modules(folders)[kind]

    def test_shape_dtype_and_level(self, augment):
        torch.manual_seed(0)
        wavs = speech_like()
        kept = wavs.clone()
        out = augment(wavs)
        assert out.shape == wavs.shape and out.dtype == wavs.dtype
        assert torch.equal(wavs, kept)
        if isinstance(augment, AddReverb):
            torch.testing.assert_close(rms(out), rms(wavs), rtol=1e-4, atol=0)

    def test_torch_seed_repeats_it(self, augment):
        wavs = speech_like()
        torch.manual_seed(5)
        first = augment(wavs)
        np.random.rand()  # has no say
        torch.manual_seed(5)
        assert torch.equal(augment(wavs), first)
        torch.manual_seed(6)
        assert not torch.allclose(augment(wavs), first)

    def test_rows_differ(self, augment):
        torch.manual_seed(0)
        out = augment(speech_like(1).expand(3, -1))
        # Far from parallel changes, not only from equal ones.
        change = out - speech_like(1)
        assert torch.corrcoef(change).triu(1).max() < 0.95
        assert not torch.allclose(out[0], out[1])

    def test_a_row_does_not_depend_on_the_others(self, augment):
        wavs = speech_like(3)
        torch.manual_seed(0)
        first = augment(wavs)
        torch.manual_seed(0)
        other = augment(torch.cat([wavs[:2], 100 * wavs[2:]]))
        torch.testing.assert_close(other[:2], first[:2])

    def test_silence_stays_finite(self, augment):
        torch.manual_seed(0)
        wavs = torch.cat([torch.zeros(1, 4001), torch.randn(1, 4001)])
        out = augment(wavs)
        assert out.isfinite().all()
        assert out[0].abs().max() < 1e-6


class TestDropChunk:
    def test_what_is_silenced_are_one_to_three_stretches(self):
        torch.manual_seed(0)
        wavs = 1 + torch.rand(400, 4000)
        dropped = DropChunk()(wavs)
        is_silent = dropped == 0
        assert torch.equal(dropped[~is_silent], wavs[~is_silent])
        edges = torch.nn.functional.pad(is_silent.int(), (1, 1)).diff(dim=1)
        n_stretches = (edges == 1).sum(dim=1)
        assert {1, 2, 3} == {*n_stretches.tolist()}
        for row, n in zip(edges, n_stretches.tolist(), strict=True):
            lengths = (row == -1).nonzero() - (row == 1).nonzero()
            # Two that overlap look like one.
            assert lengths.min() >= 100 and lengths.max() <= (4 - n) * 1000
        # From the first sample to the last.
        assert is_silent[:, :50].any() and is_silent[:, -50:].any()

    def test_it_silences_as_much_as_speechbrains(self):
        torch.manual_seed(0)
        wavs, lens = torch.ones(2000, 8000), torch.ones(2000)
        ours = (DropChunk()(wavs) == 0).float().mean(dim=1)
        theirs = (time_domain.DropChunk()(wavs, lens) == 0).float().mean(dim=1)
        # Three standard errors of the difference.
        error = ((ours.var() + theirs.var()) / len(wavs)).sqrt()
        assert (ours.mean() - theirs.mean()).abs() < 3 * error
        assert theirs.mean() > 20 * error

    def test_what_is_shorter_than_a_stretch_may_be_silenced_whole(self):
        torch.manual_seed(0)
        dropped = DropChunk(min_samples=100, max_samples=200)(torch.ones(8, 90))
        assert not dropped.any()
