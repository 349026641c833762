"""The embedding model: encoder, pooling, projection."""

import torch
from torch import nn


class SpeakerEmbedder(nn.Module):
    """Turns the features of an utterance into a speaker embedding.

    Three slots, each one line of YAML. Sizes pass from one to the next, so that a slot
    can be changed without touching the others.

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
