"""Normalisation of the features of one utterance."""

import torch

from local_modules.masking import frame_counts, frame_mask


class SentenceMeanNorm(torch.nn.Module):
    """Subtracts the mean of each band over the utterance, or of all bands together.

    Per band, it removes the spectral colouring of the channel, and with it the mean
    spectrum of the voice; together, only the loudness of the recording. Unlike
    `speechbrain.processing.features.InputNormalization` it counts frames as the
    encoder does (`local_modules.masking`) and leaves padding at zero, so that a
    padded utterance and the same utterance alone give the same features.

    Arguments
    ---------
    per_band : bool
        False keeps the mean spectrum, which helps if a speaker's recordings are all
        from one channel, in training and in use.

    Example
    -------
    >>> feats = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> SentenceMeanNorm()(feats, torch.tensor([2 / 3])).flatten()
    tensor([-1.,  1.,  0.])
    >>> feats = torch.tensor([[[1.0, 3.0], [3.0, 5.0]]])
    >>> SentenceMeanNorm(per_band=False)(feats, torch.ones(1))
    tensor([[[-2.,  0.],
             [ 0.,  2.]]])
    """

    def __init__(self, per_band: bool = True):
        super().__init__()
        self.per_band = per_band

    def forward(self, feats: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        """Normalises a padded batch.

        Arguments
        ---------
        feats : torch.Tensor
            Features, [batch, frames, mels].
        lens : torch.Tensor
            Relative lengths, [batch].

        Returns
        -------
        torch.Tensor
            Features of zero mean over the frames of speech and zero in the padding,
            [batch, frames, mels].
        """
        counts = frame_counts(lens, feats.shape[1])
        mask = frame_mask(counts, feats.shape[1]).unsqueeze(-1)
        feats = feats.masked_fill(~mask, 0.0)
        mean = feats.sum(dim=1, keepdim=True) / counts.view(-1, 1, 1)
        if not self.per_band:
            mean = mean.mean(dim=-1, keepdim=True)
        return (feats - mean).masked_fill(~mask, 0.0)


class NoNorm(torch.nn.Module):
    """Leaves the features as they are, for those whose means identify speakers.

    Example
    -------
    >>> NoNorm()(torch.tensor([1.0, 3.0]), lens=None)
    tensor([1., 3.])
    """

    def forward(self, feats: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        """Returns `feats` unchanged, [batch, frames, features]."""
        return feats
