"""Embedding model: every pooling with every projection, end to end."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from local_modules.conformer import ConformerEncoder
from local_modules.embedder import (
    BottleneckProjection,
    FrameStatistics,
    LinearProjection,
    SpeakerEmbedder,
    UnpaddedEmbedder,
)
from local_modules.normalization import SentenceMeanNorm
from local_modules.pooling import (
    AttentiveStatisticsPooling,
    MeanPooling,
    StatisticsPooling,
)
from local_modules.subsampling import ConvSubsampling, StackSubsampling

N_MELS, EMB_DIM = 20, 12
COUNTS = [9, 26, 33, 40]
LINEAR = partial(LinearProjection, emb_dim=EMB_DIM)
BOTTLENECK = partial(BottleneckProjection, hidden_size=6, emb_dim=EMB_DIM)

each_pooling = pytest.mark.parametrize(
    "pooling", [MeanPooling, StatisticsPooling, AttentiveStatisticsPooling]
)
each_projection = pytest.mark.parametrize(
    "projection",
    [LINEAR, BOTTLENECK],
    ids=["linear", "bottleneck"],
)
each_subsampling = pytest.mark.parametrize(
    "subsampling", [ConvSubsampling, StackSubsampling]
)


def build(
    pooling=StatisticsPooling,
    projection=LINEAR,
    subsampling=ConvSubsampling,
    **kwargs,
):
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        N_MELS, subsampling, 16, n_blocks=2, d_ffn=24, kernel_size=5, **kwargs
    )
    model = SpeakerEmbedder(encoder, pooling, projection)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model.eval()


def padded_batch():
    torch.manual_seed(1)
    feats = torch.randn(len(COUNTS), 40, N_MELS)
    for row, count in zip(feats, COUNTS, strict=True):
        row[count:] = 50.0
    return feats, torch.tensor(COUNTS) / 40


@each_pooling
@each_projection
def test_slots_are_interchangeable_and_padding_has_no_effect(pooling, projection):
    model = build(pooling, projection)
    feats, lens = padded_batch()
    embeddings = model(feats, lens)
    assert embeddings.shape == (len(COUNTS), 1, EMB_DIM)
    for row, embedding, count in zip(feats, embeddings, COUNTS, strict=True):
        alone = model(row[None, :count])
        assert alone.shape == (1, 1, EMB_DIM)
        torch.testing.assert_close(embedding, alone[0], atol=1e-5, rtol=1e-5)


@each_subsampling
@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
def test_padding_has_no_effect_with_mean_normalisation(subsampling, conv_norm):
    model = build(subsampling=subsampling, conv_norm=conv_norm)
    norm = SentenceMeanNorm()
    feats, lens = padded_batch()
    embeddings = model(norm(feats, lens), lens)
    for row, embedding, count in zip(feats, embeddings, COUNTS, strict=True):
        alone = row[None, :count]
        expected = model(norm(alone, torch.ones(1)), torch.ones(1))
        torch.testing.assert_close(embedding, expected[0], atol=1e-5, rtol=1e-5)


def test_different_utterances_have_different_embeddings():
    feats, lens = padded_batch()
    embeddings = build()(feats, lens).squeeze(1)
    assert torch.pdist(embeddings).min() > 1e-2


def test_evaluation_is_deterministic_and_training_is_not():
    model = build(projection=BOTTLENECK, dropout=0.3)
    feats, lens = padded_batch()
    first = model(feats, lens)
    assert torch.equal(model(feats, lens), first)
    model.train()
    drawn = model(feats, lens)
    assert not torch.allclose(drawn, first)
    assert not torch.allclose(model(feats, lens), drawn)
    model.eval()
    assert torch.equal(model(feats, lens), first)


@each_pooling
@each_projection
def test_every_parameter_learns(pooling, projection):
    model = build(pooling, projection).train()
    model(*padded_batch()).pow(3).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_saved_weights_give_the_same_embeddings(tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    other = build()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(tmp_path / "model.ckpt"))
    assert torch.equal(other(*padded_batch()), model(*padded_batch()))


class Convolved(nn.Module):
    """A model that takes padding for speech."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(N_MELS, EMB_DIM, 5, padding=2)

    def forward(self, feats):
        return self.layer(feats.transpose(1, 2)).abs().mean(dim=-1)


class TestUnpadded:
    def test_each_utterance_is_embedded_as_if_alone(self):
        torch.manual_seed(0)
        model = Convolved()
        feats, _ = padded_batch()
        counts = [26, 40, 26, 9]  # in no order, and two of one length
        lens = torch.tensor(counts) / 40
        embeddings = UnpaddedEmbedder(model)(feats, lens)
        assert embeddings.shape == (4, 1, EMB_DIM)
        for row, embedding, count in zip(feats, embeddings, counts, strict=True):
            torch.testing.assert_close(embedding, model(row[None, :count]))

    def test_without_lengths_nothing_is_padded(self):
        feats, _ = padded_batch()
        model = UnpaddedEmbedder(Convolved())
        assert torch.equal(model(feats), model(feats, torch.ones(len(feats))))

    def test_every_utterance_teaches(self):
        feats, lens = padded_batch()
        feats.requires_grad_()
        UnpaddedEmbedder(Convolved())(feats, lens).sum().backward()
        for row, count in zip(feats.grad, COUNTS, strict=True):
            assert row[:count].any() and not row[count:].any()


class TestFrameStatistics:
    def test_against_numpy(self):
        feats = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 3)))
        model = FrameStatistics(3, 5).double()

        def slopes(frames):
            """Of the line through five frames, by least squares; the first and the
            last frame go on."""
            padded = np.concatenate([frames[:1]] * 2 + [frames] + [frames[-1:]] * 2)
            windows = [padded[t : t + 5] for t in range(len(frames))]
            return np.stack([np.polyfit(range(5), w, 1)[0] for w in windows])

        expected = []
        for frames in feats.numpy():
            first = slopes(frames)
            parts = [x.std(0, ddof=1) for x in (frames, first, slopes(first))]
            expected.append(np.concatenate([frames.mean(0), *parts]))
        found = model.statistics(feats)
        np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)
        assert torch.equal(model(feats), model.projection(found))


def test_the_bottleneck_ends_in_an_exponential_unit():
    """Which goes down to -1, and is linear above 0."""
    projection = BottleneckProjection(6, 5, 4)
    with torch.no_grad():
        projection.layers[2].weight.zero_()
        projection.layers[2].bias.copy_(torch.tensor([-50.0, -1.0, 0.0, 3.0]))
    expected = torch.tensor([[-1.0, np.exp(-1.0) - 1, 0.0, 3.0]])
    torch.testing.assert_close(projection(torch.randn(1, 6)), expected.float())
