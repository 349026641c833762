"""Cosine scores, against SciPy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from local_modules.scoring import cosine_scores


@pytest.fixture
def embeddings():
    return torch.randn(30, 12, generator=torch.Generator().manual_seed(0))


def trials(n, n_files=30):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(n_files, (2, n), generator=generator)


def test_is_scipys_cosine(embeddings):
    enrol, test = trials(200)
    scores = cosine_scores(embeddings, enrol, test)
    expected = [
        1 - cosine(embeddings[a].double(), embeddings[b].double())
        for a, b in zip(enrol, test, strict=True)
    ]
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 65535, 65536, 65537, 200000])
def test_any_number_of_trials(embeddings, n):
    enrol, test = trials(n)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    expected = (unit @ unit.T)[enrol, test]
    torch.testing.assert_close(
        cosine_scores(embeddings, enrol, test), expected, rtol=0, atol=1e-6
    )


def test_length_of_an_embedding_does_not_count(embeddings):
    enrol, test = trials(500)
    scale = torch.logspace(-4, 4, len(embeddings)).unsqueeze(1)
    torch.testing.assert_close(
        cosine_scores(scale * embeddings, enrol, test),
        cosine_scores(embeddings, enrol, test),
        rtol=0,
        atol=1e-6,
    )


def test_sides_can_be_exchanged(embeddings):
    enrol, test = trials(500)
    forth, back = (
        cosine_scores(embeddings, enrol, test),
        cosine_scores(embeddings, test, enrol),
    )
    assert torch.equal(forth, back)


def test_range_and_half_precision(embeddings):
    itself = torch.arange(30)
    scores = cosine_scores(embeddings.bfloat16(), itself, itself)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.ones(30), rtol=0, atol=1e-6)
    both = torch.cat([embeddings, -embeddings])
    scores = cosine_scores(both, itself, itself + 30)
    torch.testing.assert_close(scores, -torch.ones(30), rtol=0, atol=1e-6)
