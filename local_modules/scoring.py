"""Scores of trials from embeddings."""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from local_modules.trials import TrialList


def cosine_scores(
    embeddings: torch.Tensor, enrol: torch.Tensor, test: torch.Tensor
) -> torch.Tensor:
    """Cosine similarity of the two sides of each trial.

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding per file, [files, emb_dim].
    enrol, test : torch.Tensor
        Index of each trial's sides in `embeddings`, int64, [trials].

    Returns
    -------
    torch.Tensor
        Scores in [-1, 1], float32, [trials].

    Example
    -------
    >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    >>> cosine_scores(embeddings, torch.tensor([0, 0]), torch.tensor([1, 2]))
    tensor([1., 0.])
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    blocks = zip(enrol.split(65536), test.split(65536), strict=True)
    return torch.cat([(unit[a] * unit[b]).sum(dim=-1) for a, b in blocks])


def score_trials(
    embeddings: Mapping[str, torch.Tensor], trials: TrialList
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine scores of a trial list.

    Arguments
    ---------
    embeddings : mapping of str to torch.Tensor
        The embedding of each file by its path, [emb_dim].
    trials : TrialList
        The trials; those of a file without an embedding are left out.

    Returns
    -------
    target, nontarget : torch.Tensor
        Scores, [n_target] and [n_nontarget].

    Example
    -------
    >>> import numpy as np
    >>> embeddings = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    >>> trials = TrialList(np.array([True, False]), ["a", "a"], ["a", "b"])
    >>> score_trials(embeddings, trials)
    (tensor([1.]), tensor([0.]))
    """
    row = {path: index for index, path in enumerate(embeddings)}
    pairs = torch.tensor(
        [
            (label, row[enrol], row[test])
            for label, enrol, test in zip(
                trials.labels.tolist(), trials.enrol, trials.test, strict=True
            )
            if enrol in row and test in row
        ],
        dtype=torch.int64,
    ).reshape(-1, 3)
    is_target = pairs[:, 0].bool()
    vectors = torch.stack(list(embeddings.values()))
    scores = cosine_scores(vectors, pairs[:, 1], pairs[:, 2])
    return scores[is_target], scores[~is_target]
