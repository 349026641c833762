"""Augmentation, measured: levels, spectra and reverberation times."""

import numpy as np
import pytest
import torch
from scipy import stats

from local_modules.augment import AddColouredNoise, AddSyntheticReverb

RATE = 16000


def rms(x):
    return x.double().square().mean(dim=1).sqrt()


def speech_like(batch=4, n_samples=RATE):
    generator = torch.Generator().manual_seed(1)
    level = torch.logspace(-3, 0, batch).unsqueeze(1)
    return level * torch.randn(batch, n_samples, generator=generator)


def test_signal_to_noise_ratio_is_drawn_from_its_range():
    torch.manual_seed(0)
    wavs = speech_like(200, 4000)
    noise = AddColouredNoise(snr_low=5, snr_high=25)(wavs) - wavs
    snr = 20 * torch.log10(rms(wavs) / rms(noise)).numpy()
    assert snr.min() > 4.99 and snr.max() < 25.01
    assert stats.kstest((snr - 5) / 20, "uniform").pvalue > 0.001


def test_noise_falls_as_the_power_of_frequency():
    """Log power over log frequency falls by alpha, which is drawn from its range."""
    torch.manual_seed(0)
    wavs = torch.zeros(150, 8192)
    wavs[:, 0] = 1.0
    noise = AddColouredNoise(snr_low=-60, snr_high=-60, alpha_high=3.0)(wavs) - wavs
    power = np.abs(np.fft.rfft(noise.double().numpy())[:, 10:4000]) ** 2
    log_frequency = np.log(np.arange(10, 4000))
    slopes = -np.polyfit(log_frequency, np.log(power).T, 1)[0]
    assert slopes.min() > -0.2 and slopes.max() < 3.2
    assert stats.kstest(slopes / 3, "uniform").pvalue > 0.001


def test_white_noise_where_alpha_is_zero():
    torch.manual_seed(0)
    wavs = torch.zeros(1, 65536)
    wavs[:, 0] = 1.0
    noise = AddColouredNoise(-60, -60, alpha_high=0.0)(wavs) - wavs
    low, high = np.split(np.abs(np.fft.rfft(noise.double().numpy())[0, 1:]) ** 2, 2)
    assert low.mean() == pytest.approx(high.mean(), rel=0.05)


def room_responses(batch, **options):
    """What becomes of unit impulses, with the direct path scaled back to one."""
    torch.manual_seed(0)
    wavs = torch.zeros(batch, RATE)
    wavs[:, 0] = 1.0
    out = AddSyntheticReverb(RATE, **options)(wavs).double().numpy()
    return out / out[:, :1]


def measured_rt60(tail):
    """Reverberation time from Schroeder's backward integration, -5 to -25 dB."""
    decay = np.cumsum(tail[::-1] ** 2)[::-1]
    decay = 10 * np.log10(decay / decay[0] + 1e-12)
    fit = (decay < -5) & (decay > -25)
    return -60 / np.polyfit(np.flatnonzero(fit) / RATE, decay[fit], 1)[0]


@pytest.mark.parametrize("rt60", [0.15, 0.3, 0.6])
def test_tail_decays_by_60_db_within_the_reverberation_time(rt60):
    tails = room_responses(12, rt60_low=rt60, rt60_high=rt60)[:, 1:]
    times = [measured_rt60(tail) for tail in tails]
    assert np.mean(times) == pytest.approx(rt60, rel=0.03)
    n = int(rt60 * RATE)
    start, end = tails[:, :300], tails[:, n - 300 : n - 1]
    fall = 10 * np.log10(np.mean(end**2) / np.mean(start**2))
    # From the middle of the one window to that of the other.
    assert fall == pytest.approx(-60 * (n - 300) / n, abs=1)
    # Nothing after it but the rounding of the Fourier transform.
    assert np.abs(tails[:, n:]).max() < 1e-5


def test_reverberation_times_fill_their_range():
    tails = room_responses(100, rt60_low=0.2, rt60_high=0.6)[:, 1:]
    times = np.array([measured_rt60(tail) for tail in tails])
    assert times.min() > 0.17 and times.max() < 0.65
    assert stats.kstest((times - 0.2) / 0.4, "uniform").pvalue > 0.001


def test_direct_to_reverberant_ratio_is_drawn_from_its_range():
    tails = room_responses(200, drr_low=-3.0, drr_high=9.0)[:, 1:]
    ratio = -10 * np.log10((tails**2).sum(axis=1))
    assert ratio.min() > -3.01 and ratio.max() < 9.01
    assert stats.kstest((ratio + 3) / 12, "uniform").pvalue > 0.001


def test_reverb_is_a_convolution():
    """Of a delayed impulse: the same response, later; nothing wraps around."""
    torch.manual_seed(3)
    wavs = torch.zeros(1, 12000)
    wavs[0, 9000] = 0.5
    out = AddSyntheticReverb(RATE, 0.5, 0.5)(wavs)[0]
    assert out[:9000].abs().max() < 1e-6
    torch.manual_seed(3)
    wavs = torch.zeros(1, 12000)
    wavs[0, 0] = 0.5
    early = AddSyntheticReverb(RATE, 0.5, 0.5)(wavs)[0]
    shape = out[9000:] / out[9000]
    torch.testing.assert_close(shape, early[:3000] / early[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("augment", [AddColouredNoise(), AddSyntheticReverb(RATE)])
class TestEither:
    def test_shape_dtype_and_level(self, augment):
        torch.manual_seed(0)
        wavs = speech_like()
        kept = wavs.clone()
        out = augment(wavs)
        assert out.shape == wavs.shape and out.dtype == wavs.dtype
        assert torch.equal(wavs, kept)
        if isinstance(augment, AddSyntheticReverb):
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
