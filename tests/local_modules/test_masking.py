"""Counts and masks of frames, against counting."""

import numpy as np
import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.utils.data_utils import batch_pad_right

from local_modules.masking import frame_counts, frame_mask, pad_to_multiple

HOP = 160


@pytest.mark.parametrize("n_frames", [2, 3, 5, 101, 301, 998, 1001, 1501, 6001, 60_001])
def test_every_length_of_a_waveform_padded_to_whole_hops(n_frames):
    total = (n_frames - 1) * HOP
    # Every length up to ten seconds; further on those next to a whole hop.
    samples = torch.arange(1, min(total, 160_000) + 1)
    hops = torch.arange(1, n_frames) * HOP
    samples = torch.cat([samples, hops - 1, hops, (hops + 1).clamp(max=total)])
    lens = (samples.double() / total).float()
    expected = 1 + samples // HOP
    assert torch.equal(frame_counts(lens, n_frames), expected)


def test_every_length_of_features_padded_by_hand():
    for n_frames in range(1, 1501):
        expected = torch.arange(1, n_frames + 1)
        lens = expected.float() / n_frames
        assert torch.equal(frame_counts(lens, n_frames), expected), n_frames


@pytest.mark.parametrize(
    "longest", [159, 160, 161, 16_000, 16_001, 48_077, 320_159, 9_599_999]
)
def test_every_length_of_a_batch_padded_to_a_multiple(longest):
    samples = torch.arange(1, min(longest, 160_000) + 1)
    hops = torch.arange(HOP, longest + 1, HOP)
    samples = torch.cat([samples, hops - 1, hops, torch.tensor([longest])])
    lens = (samples.double() / longest).float()
    wavs, lens = pad_to_multiple(torch.ones(1, longest), lens, HOP)
    assert wavs.shape[1] % HOP == 0
    assert wavs.sum() == longest
    assert lens.dtype == torch.float32
    counts = frame_counts(lens, 1 + wavs.shape[1] // HOP)
    assert torch.equal(counts, 1 + samples // HOP)


def test_agrees_with_the_frames_that_speechbrain_computes():
    features = Fbank(sample_rate=16000, n_mels=20)
    for n_samples in (HOP * 7 - 1, HOP * 7, HOP * 7 + 1, HOP * 20 + 79):
        alone = features(torch.randn(1, n_samples))
        wavs, lens = batch_pad_right([torch.ones(n_samples), torch.ones(40 * HOP)])
        counts = frame_counts(lens, features(wavs).shape[1])
        assert counts.tolist() == [alone.shape[1], 41]


def test_mask_marks_as_many_frames_as_counted():
    counts = torch.tensor([1, 4, 7])
    expected = np.arange(7) < counts.numpy()[:, None]
    np.testing.assert_array_equal(frame_mask(counts, 7).numpy(), expected)


@pytest.mark.parametrize("n_samples", [319, 320, 321])
def test_no_more_padding_than_a_multiple_takes(n_samples):
    padded, lens = pad_to_multiple(torch.ones(1, n_samples), torch.ones(1), HOP)
    assert padded.shape[1] == -(-n_samples // HOP) * HOP
    assert padded.sum() == n_samples
    assert lens.item() * padded.shape[1] == pytest.approx(n_samples)
