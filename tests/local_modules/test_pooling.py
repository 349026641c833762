"""Poolings, against NumPy on the unpadded part."""

import numpy as np
import pytest
import torch

from local_modules.masking import frame_mask
from local_modules.pooling import (
    AttentiveStatisticsPooling,
    MeanPooling,
    StatisticsPooling,
)

POOLINGS = [MeanPooling, StatisticsPooling, AttentiveStatisticsPooling]
COUNTS = [1, 2, 11, 20]
CHANNELS = 6


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    frames = rng.normal(1.0, 2.0, (len(COUNTS), 20, CHANNELS)).astype(np.float32)
    return torch.from_numpy(frames), frame_mask(torch.tensor(COUNTS), 20)


def build(pooling_class):
    torch.manual_seed(0)
    return pooling_class(CHANNELS).eval()


def floored_std(variance):
    return np.sqrt(np.maximum(variance, 1e-5))


def numpy_mean(pooling, speech):
    return speech.mean(0)


def numpy_statistics(pooling, speech):
    return np.concatenate([speech.mean(0), floored_std(speech.var(0))])


def numpy_attentive(pooling, speech):
    """One frame and one channel at a time, as the paper writes it."""
    weights = {
        name: value.detach().double().numpy()
        for name, value in pooling.named_parameters()
    }
    context = numpy_statistics(pooling, speech)
    scores = np.empty_like(speech)
    for t, frame in enumerate(speech):
        hidden = weights["frame_layer.weight"] @ frame + weights["frame_layer.bias"]
        hidden += weights["context_layer.weight"] @ context
        scores[t] = weights["score_layer.weight"] @ np.tanh(hidden)
        scores[t] += weights["score_layer.bias"]
    result = np.empty(2 * CHANNELS)
    for c in range(CHANNELS):
        share = np.exp(scores[:, c]) / np.exp(scores[:, c]).sum()
        mean = share @ speech[:, c]
        variance = share @ (speech[:, c] - mean) ** 2
        result[c], result[CHANNELS + c] = mean, floored_std(variance)
    return result


@pytest.mark.parametrize(
    "pooling_class, reference",
    [
        (MeanPooling, numpy_mean),
        (StatisticsPooling, numpy_statistics),
        (AttentiveStatisticsPooling, numpy_attentive),
    ],
)
def test_against_numpy_on_the_unpadded_part(batch, pooling_class, reference):
    frames, mask = batch
    pooling = build(pooling_class)
    pooled = pooling(frames, mask).detach().numpy()
    for row, out, count in zip(frames.numpy(), pooled, COUNTS, strict=True):
        expected = reference(pooling, row[:count].astype(np.float64))
        np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_padded_equals_alone(batch, pooling_class):
    frames, mask = batch
    pooling = build(pooling_class)
    pooled = pooling(frames, mask)
    for row, out, count in zip(frames, pooled, COUNTS, strict=True):
        alone = pooling(row[None, :count], None)
        torch.testing.assert_close(out, alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_what_is_in_the_padding_does_not_matter(batch, pooling_class):
    frames, mask = batch
    pooling = build(pooling_class)
    dirty = frames.masked_fill(~mask.unsqueeze(-1), 1e4)
    torch.testing.assert_close(pooling(dirty, mask), pooling(frames, mask))


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_no_mask_is_a_full_mask(batch, pooling_class):
    frames, mask = batch
    pooling = build(pooling_class)
    torch.testing.assert_close(
        pooling(frames, None), pooling(frames, torch.ones_like(mask))
    )


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_order_of_the_frames_does_not_matter(batch, pooling_class):
    frames, _ = batch
    pooling = build(pooling_class)
    order = torch.randperm(frames.shape[1])
    torch.testing.assert_close(
        pooling(frames[:, order], None), pooling(frames, None), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_output_size(batch, pooling_class):
    pooling = build(pooling_class)
    assert pooling(*batch).shape == (len(COUNTS), pooling.output_size)


@pytest.mark.parametrize("pooling_class", POOLINGS)
def test_gradient_is_finite_where_nothing_varies(pooling_class):
    pooling = build(pooling_class)
    one_frame = torch.randn(2, 1, CHANNELS)
    constant = torch.ones(2, 5, CHANNELS)
    for frames in (one_frame, constant):
        frames.requires_grad_()
        pooling(frames, None).sum().backward()
        assert frames.grad.isfinite().all()
        assert frames.grad.abs().sum() > 0


@pytest.mark.parametrize("pooling_class", [MeanPooling, StatisticsPooling])
def test_frames_of_bf16_are_summed_in_float32(pooling_class):
    frames = (5 + torch.randn(2, 999, CHANNELS)).bfloat16()
    mask = frame_mask(torch.tensor([999, 777]), 999)
    pooling = build(pooling_class)
    torch.testing.assert_close(pooling(frames, mask), pooling(frames.float(), mask))
