"""The embedding model: encoder, pooling, projection."""

import torch
from speechbrain.processing.features import Deltas
from torch import nn

from local_modules.masking import frame_counts


class SpeakerEmbedder(nn.Module):
    """Turns the features of an utterance into a speaker embedding.

    Three slots in the YAML. Sizes pass from one to the next, so that a slot can be
    changed without touching the others.

    Arguments
    ---------
    encoder : torch.nn.Module
        `encoder(feats, lens)` returns `(frames, mask)` and has `output_size`.
    pooling : callable
        Class of the pooling, called with the encoder's `output_size`.
    projection : callable
        Class of the projection, called with the pooling's `output_size`.

    Example
    -------
    >>> from functools import partial
    >>> from local_modules.conformer import ConformerEncoder
    >>> from local_modules.pooling import StatisticsPooling
    >>> from local_modules.subsampling import ConvSubsampling
    >>> model = SpeakerEmbedder(
    ...     ConformerEncoder(80, ConvSubsampling, 32),
    ...     StatisticsPooling,
    ...     partial(LinearProjection, emb_dim=48),
    ... )
    >>> model(torch.rand(2, 100, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 1, 48])
    """

    def __init__(self, encoder: nn.Module, pooling, projection):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling(encoder.output_size)
        self.projection = projection(self.pooling.output_size)

    def forward(
        self, feats: torch.Tensor, lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeds a padded batch.

        Arguments
        ---------
        feats : torch.Tensor
            Features, [batch, frames, features].
        lens : torch.Tensor | None
            Relative lengths, [batch]; None if nothing is padded.

        Returns
        -------
        torch.Tensor
            Speaker embeddings, [batch, 1, emb_dim].
        """
        frames, mask = self.encoder(feats, lens)
        return self.projection(self.pooling(frames, mask)).unsqueeze(1)


class UnpaddedEmbedder(nn.Module):
    """Passes utterances without padding to a model that doesn't mask padding.

    SpeechBrain's x-vector and ResNet convolve over the padding as if it were speech,
    and the latter pools over it too. Utterances of equal length, such as the crops of a
    training batch, go through the model together.

    Arguments
    ---------
    encoder : torch.nn.Module
        `encoder(feats)` turns features [batch, frames, features] into embeddings,
        [batch, emb_dim] or [batch, 1, emb_dim].

    Example
    -------
    >>> class Mean(nn.Module):
    ...     def forward(self, feats):
    ...         return feats.mean(dim=1)
    >>> feats = torch.tensor([[[1.0], [3.0], [9.0]], [[1.0], [3.0], [9.0]]])
    >>> UnpaddedEmbedder(Mean())(feats, torch.tensor([2 / 3, 1.0])).flatten()
    tensor([2.0000, 4.3333])
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, feats: torch.Tensor, lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `SpeakerEmbedder.forward`."""
        if lens is None:
            return self.encoder(feats).flatten(1).unsqueeze(1)
        counts = frame_counts(lens, feats.shape[1])
        parts, rows = [], []
        for count in counts.unique():
            of_this_length = (counts == count).nonzero().flatten()
            parts.append(self.encoder(feats[of_this_length, :count]).flatten(1))
            rows.append(of_this_length)
        return torch.cat(parts)[torch.cat(rows).argsort()].unsqueeze(1)


class FrameStatistics(nn.Module):
    """Means of frames, and standard deviations of frames, deltas and delta-deltas,
    under one linear map: the approach before neural networks.

    Arguments
    ---------
    input_size : int
        Size of a frame.
    emb_dim : int
        Size of the embedding.

    Example
    -------
    >>> FrameStatistics(20, 16)(torch.rand(2, 100, 20)).shape
    torch.Size([2, 16])
    """

    def __init__(self, input_size: int, emb_dim: int):
        super().__init__()
        self.deltas = Deltas(input_size)
        # No means of deltas: they depend only on the first and the last frames.
        self.projection = nn.Linear(4 * input_size, emb_dim)

    def statistics(self, feats: torch.Tensor) -> torch.Tensor:
        """The map's input: means of the frames, and standard deviations of the frames,
        their deltas and their delta-deltas.

        Arguments
        ---------
        feats : torch.Tensor
            Features without padding, [batch, frames, input_size].

        Returns
        -------
        torch.Tensor
            [batch, 4 * input_size].
        """
        first = self.deltas(feats)
        deviations = [x.std(dim=1) for x in (feats, first, self.deltas(first))]
        return torch.cat([feats.mean(dim=1), *deviations], dim=-1)

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """Maps [batch, frames, input_size] to [batch, emb_dim]."""
        return self.projection(self.statistics(feats))


class LinearProjection(nn.Module):
    """Batch-normalised linear layer, as at the end of MFA-Conformer and ECAPA-TDNN.

    Arguments
    ---------
    input_size : int
        Size of the pooled vector.
    emb_dim : int
        Size of the embedding.

    Example
    -------
    >>> LinearProjection(64, 16)(torch.rand(2, 64)).shape
    torch.Size([2, 16])
    """

    def __init__(self, input_size: int, emb_dim: int):
        super().__init__()
        self.norm_in = nn.BatchNorm1d(input_size)
        self.linear = nn.Linear(input_size, emb_dim)
        self.norm_out = nn.BatchNorm1d(emb_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Maps [batch, input_size] to [batch, emb_dim]."""
        return self.norm_out(self.linear(self.norm_in(pooled)))


class BottleneckProjection(nn.Module):
    """Two linear layers with exponential linear units, as in the reference system.

    Arguments
    ---------
    input_size : int
        Size of the pooled vector.
    hidden_size : int
        Size between the layers.
    emb_dim : int
        Size of the embedding.

    Example
    -------
    >>> BottleneckProjection(64, 32, 2048)(torch.rand(2, 64)).shape
    torch.Size([2, 2048])
    """

    def __init__(self, input_size: int, hidden_size: int, emb_dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_size, hidden_size),
            nn.ELU(),
            nn.Linear(hidden_size, emb_dim),
            nn.ELU(),
        )

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Maps [batch, input_size] to [batch, emb_dim]."""
        return self.layers(pooled)
