"""Scores of trials from embeddings.

Everything is a product of two matrices of embeddings, in blocks where the product
would not fit.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from local_modules.trials import TrialList


def pair_products(
    left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Inner product of the two vectors of each trial, some trials at a time.

    Arguments
    ---------
    left, right : torch.Tensor
        Vectors of the sides, [n, emb_dim] and [m, emb_dim].
    rows, columns : torch.Tensor
        Each trial's row in `left` and in `right`, int64, [trials].

    Returns
    -------
    torch.Tensor
        [trials].
    """
    blocks = zip(rows.split(65536), columns.split(65536), strict=True)
    return torch.cat([(left[a] * right[b]).sum(dim=-1) for a, b in blocks])


def subtract_mean(embeddings: torch.Tensor, mean: torch.Tensor | None) -> torch.Tensor:
    """Embeddings of length one, after subtracting the mean of many speakers, if there
    is one.

    Arguments
    ---------
    embeddings : torch.Tensor
        [n, emb_dim].
    mean : torch.Tensor | None
        Mean of the training or validation speakers' embeddings, [emb_dim].

    Returns
    -------
    torch.Tensor
        [n, emb_dim], float32.
    """
    centred = embeddings.float()
    if mean is not None:
        centred = centred - mean.float()
    return F.normalize(centred, dim=-1)


def enrol(embeddings: torch.Tensor, members: Sequence[Sequence[int]]) -> torch.Tensor:
    """One vector for each enrolled model of one or several utterances.

    Arguments
    ---------
    embeddings : torch.Tensor
        One embedding per utterance, [n, emb_dim].
    members : sequence of sequence of int
        The utterances of each model, as rows of `embeddings`.

    Returns
    -------
    torch.Tensor
        Means of normalised embeddings, of length one, [models, emb_dim], float32.

    Example
    -------
    >>> enrol(torch.eye(2), [[0, 1]])
    tensor([[0.7071, 0.7071]])
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    models = torch.stack([unit[list(rows)].mean(dim=0) for rows in members])
    return F.normalize(models, dim=-1)


def speaker_means(embeddings: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
    """Mean embedding of each speaker: a cohort for `cohort_statistics`.

    Arguments
    ---------
    embeddings : torch.Tensor
        [n, emb_dim].
    speakers : torch.Tensor
        Number of each row's speaker, from 0, without gaps, int64, [n].

    Returns
    -------
    torch.Tensor
        Of length one, [speakers, emb_dim], float32.

    Example
    -------
    >>> speaker_means(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([1, 0]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    sums = torch.zeros(int(speakers.max()) + 1, unit.shape[-1])
    return F.normalize(sums.index_add_(0, speakers, unit), dim=-1)


def cohort_statistics(
    vectors: torch.Tensor,
    cohort: torch.Tensor,
    top_k: int | None = None,
    memory_bytes: int = 2**24,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each vector's scores against a cohort.

    Arguments
    ---------
    vectors : torch.Tensor
        Models or test utterances, of length one, [n, emb_dim].
    cohort : torch.Tensor
        Speakers that are in no trial, of length one, [speakers, emb_dim].
    top_k : int | None
        Take the k highest scores of each vector only (adaptive); None takes all.
    memory_bytes : int
        Bytes of scores held at a time; fastest if they fit into the CPU's caches.

    Returns
    -------
    mean, std : torch.Tensor
        [n] each, float32.

    Raises
    ------
    ValueError
        The cohort or `top_k` is smaller than 2: there is no standard deviation.
    """
    n_kept = len(cohort) if top_k is None else min(top_k, len(cohort))
    if n_kept < 2:
        raise ValueError(f"{n_kept} cohort scores; a standard deviation needs 2")
    vectors, cohort = vectors.float(), cohort.float()
    if n_kept == len(cohort):
        # The scores' moments are those of the cohort, projected onto each vector.
        spread = ((vectors @ torch.cov(cohort.T)) * vectors).sum(dim=-1)
        return vectors @ cohort.mean(dim=0), spread.clamp(min=0).sqrt()
    n_rows = max(1, memory_bytes // (4 * len(cohort)))
    statistics = []
    for block in vectors.split(n_rows):
        scores = (block @ cohort.T).numpy()
        # NumPy's partition is several times faster than torch.topk on a CPU.
        scores.partition(len(cohort) - n_kept, axis=-1)
        highest = np.ascontiguousarray(scores[:, -n_kept:])
        statistics.append(torch.std_mean(torch.from_numpy(highest), dim=-1))
    std, mean = (torch.cat(parts) for parts in zip(*statistics, strict=True))
    return mean, std


def normalise_scores(
    scores: torch.Tensor,
    enrol_statistics: tuple[torch.Tensor, torch.Tensor],
    test_statistics: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Symmetric score normalisation: how far a score stands out from either side's
    scores against the cohort.

    With statistics of all the cohort it is S-norm (Kenny, Odyssey 2010), with those of
    the top k AS-norm (Matějka et al., Interspeech 2017, AS-norm1).

    Arguments
    ---------
    scores : torch.Tensor
        [trials].
    enrol_statistics, test_statistics : tuple of torch.Tensor
        Mean and standard deviation of each trial's sides, `cohort_statistics` indexed
        by the trials, [trials] each.

    Returns
    -------
    torch.Tensor
        [trials].

    Example
    -------
    >>> one, two = (torch.tensor([0.0]), torch.tensor([0.1])), torch.tensor([0.2])
    >>> normalise_scores(torch.tensor([0.6]), one, (two, two))
    tensor([4.])
    """
    sides = (enrol_statistics, test_statistics)
    return sum((scores - mean) / std for mean, std in sides) / 2


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
    >>> embeddings = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    >>> trials = TrialList(np.array([True, False]), ["a", "a"], ["a", "b"])
    >>> score_trials(embeddings, trials)
    (tensor([1.]), tensor([0.]))
    """
    kept, rows, columns = trial_rows(list(embeddings), trials)
    unit = F.normalize(torch.stack(list(embeddings.values())).float(), dim=-1)
    scores = pair_products(unit, unit, *map(torch.from_numpy, (rows, columns)))
    is_target = torch.from_numpy(trials.labels[kept])
    return scores[is_target], scores[~is_target]


def trial_rows(
    names: Sequence[str], trials: TrialList, enrolled: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of an array of embeddings for the sides of trials.

    Arguments
    ---------
    names : sequence of str
        Name of each row.
    trials : TrialList
        The trials.
    enrolled : sequence of str | None
        Name of each row of the enrolment side, if it has a separate array.

    Returns
    -------
    kept : numpy.ndarray
        The trials whose sides are both there, int64, [n_kept].
    rows, columns : numpy.ndarray
        Their enrolment and test sides, int64, [n_kept].
    """
    row = {name: index for index, name in enumerate(enrolled or names)}
    column = {name: index for index, name in enumerate(names)}
    found = [
        (index, row[one], column[other])
        for index, (one, other) in enumerate(
            zip(trials.enrol, trials.test, strict=True)
        )
        if one in row and other in column
    ]
    kept, rows, columns = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return kept, rows, columns
