"""Probabilistic linear discriminant analysis of embeddings.

Prince & Elder (ICCV 2007) for the model, Garcia-Romero & Espy-Wilson (Interspeech 2011)
for making the vectors Gaussian by length normalisation. SpeechBrain fits it; this
module adds the reduction before it, and scores single trials, where SpeechBrain scores
all models against all test utterances.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from local_modules.scoring import pair_products

MAX_DIMS = 100  # after linear discriminant analysis
MAX_SPEAKERS = 2000  # to fit on: memory grows with them and the square of the rank


@dataclass(frozen=True)
class Plda:
    """A fitted model: a vector is mean + loadings · speaker + residual, the speaker
    standard Gaussian.

    Arguments
    ---------
    centre : torch.Tensor
        Subtracted from embeddings first, [emb_dim].
    projection : torch.Tensor
        Then reduces them, [emb_dim, dims].
    mean : torch.Tensor
        [dims].
    loadings : torch.Tensor
        The speakers' directions, [dims, rank].
    residual : torch.Tensor
        Covariance of the residual, [dims, dims].
    """

    centre: torch.Tensor
    projection: torch.Tensor
    mean: torch.Tensor
    loadings: torch.Tensor
    residual: torch.Tensor

    def reduced(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings as the model sees them, float64, [n, dims]."""
        reduced = (embeddings.double() - self.centre) @ self.projection
        return F.normalize(reduced, dim=-1)

    def scores(
        self,
        enrolled: torch.Tensor,
        tested: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """Log-likelihood ratios of one speaker in both vectors against two speakers.

        Arguments
        ---------
        enrolled, tested : torch.Tensor
            Embeddings of the sides, [n, emb_dim] and [m, emb_dim].
        rows, columns : torch.Tensor
            Each trial's row in either, int64, [trials].

        Returns
        -------
        torch.Tensor
            [trials], float32.
        """
        # Same speaker: covariance [[total, between], [between, total]]. The quadratic
        # forms of its inverse and of total's have terms within and across the sides.
        between = self.loadings @ self.loadings.T
        total = between + self.residual
        inverse = torch.linalg.inv(total)
        schur = torch.linalg.inv(total - between @ inverse @ between)
        own, across = inverse - schur, inverse @ between @ schur
        joint = torch.cat(
            [torch.cat([total, between], 1), torch.cat([between, total], 1)]
        )
        offset = torch.logdet(total) - torch.logdet(joint) / 2
        left, right = (self.reduced(side) - self.mean for side in (enrolled, tested))
        alone = [((side @ own) * side).sum(dim=-1) / 2 for side in (left, right)]
        together = pair_products(left @ across, right, rows, columns)
        return (together + alone[0][rows] + alone[1][columns] + offset).float()


def fit_plda(embeddings: torch.Tensor, speakers: torch.Tensor) -> Plda | None:
    """Fits a model to speakers with several recordings.

    Arguments
    ---------
    embeddings : torch.Tensor
        [n, emb_dim].
    speakers : torch.Tensor
        Number of each row's speaker, from 0, without gaps, int64, [n].

    Returns
    -------
    Plda | None
        None for fewer than three speakers, fewer than two recordings for each on
        average, or only copies of one for each: the variation within a speaker can't
        be estimated then.
    """
    # They take seconds, and loading a model doesn't need them.
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from speechbrain.processing.PLDA_LDA import PLDA, StatObject_SB

    kept = speakers < MAX_SPEAKERS
    vectors, numbers = embeddings[kept].double().numpy(), speakers[kept].numpy()
    n_speakers = numbers.max() + 1
    if n_speakers < 3 or len(vectors) < 2 * n_speakers:
        return None
    _, first = np.unique(numbers, return_index=True)
    if np.allclose(vectors, vectors[first[numbers]], atol=1e-4):  # but for rounding
        return None
    n_dims = min(MAX_DIMS, n_speakers - 1, vectors.shape[1])
    analysis = LinearDiscriminantAnalysis(n_components=n_dims).fit(vectors, numbers)
    projection = analysis.scalings_[:, :n_dims]
    n_dims = projection.shape[1]
    reduced = (vectors - analysis.xbar_) @ projection
    reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
    n = len(reduced)
    statistics = StatObject_SB(
        modelset=numbers.astype(str).astype(object),
        segset=np.arange(n).astype(str).astype(object),
        start=np.full(n, None),
        stop=np.full(n, None),
        stat0=np.ones((n, 1)),
        stat1=reduced,
    )
    model = PLDA(rank_f=n_dims)
    model.plda(statistics)
    parts = (analysis.xbar_, projection, model.mean, model.F, model.Sigma)
    return Plda(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
