"""PLDA against its definition, against SpeechBrain's scoring, and on known speakers."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from speechbrain.processing.PLDA_LDA import Ndx, StatObject_SB, fast_PLDA_scoring

from local_modules.evaluation.plda import Plda, fit_plda
from local_modules.metrics import equal_error_rate

DIM, RANK = 4, 2


def population(n_speakers, n_utterances, dim=12, seed=0):
    """Speakers differ in the first half of the dimensions, recordings most in the
    second."""
    rng = np.random.default_rng(seed)
    speakers = rng.standard_normal((n_speakers, dim)) * np.repeat([1.5, 0.2], dim // 2)
    vectors = np.repeat(speakers, n_utterances, axis=0)
    noise = rng.standard_normal(vectors.shape) * np.repeat([0.5, 3.0], dim // 2)
    numbers = np.repeat(np.arange(n_speakers), n_utterances)
    return torch.from_numpy(vectors + noise + 0.7), torch.from_numpy(numbers)


@pytest.fixture(scope="module")
def model():
    rng = torch.Generator().manual_seed(1)
    factor = torch.randn(DIM, DIM, generator=rng, dtype=torch.float64)
    return Plda(
        centre=torch.zeros(DIM, dtype=torch.float64),
        projection=torch.eye(DIM, dtype=torch.float64),
        mean=torch.randn(DIM, generator=rng, dtype=torch.float64),
        loadings=torch.randn(DIM, RANK, generator=rng, dtype=torch.float64),
        residual=factor @ factor.T + 0.1 * torch.eye(DIM, dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def sides():
    rng = torch.Generator().manual_seed(2)
    return (torch.randn(n, DIM, generator=rng) for n in (3, 5))


def test_a_score_is_the_ratio_of_two_gaussians(model, sides):
    left, right = sides
    rows, columns = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3])
    between = (model.loadings @ model.loadings.T).numpy()
    total = between + model.residual.numpy()
    same = np.block([[total, between], [between, total]])
    mean = model.mean.numpy()
    expected = []
    for row, column in zip(rows, columns, strict=True):
        x, y = (
            torch.nn.functional.normalize(side[index].double(), dim=0).numpy()
            for side, index in ((left, row), (right, column))
        )
        together = multivariate_normal(np.r_[mean, mean], same)
        alone = multivariate_normal(mean, total)
        expected.append(
            together.logpdf(np.r_[x, y]) - alone.logpdf(x) - alone.logpdf(y)
        )
    found = model.scores(left, right, rows, columns)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.scores(right, left, columns, rows), expected, rtol=1e-5
    )


def test_scores_are_speechbrains():
    vectors, numbers = population(30, 6)
    model = fit_plda(vectors, numbers)
    others, _ = population(4, 2, seed=1)

    def statistics(vectors, prefix):
        names = np.array([f"{prefix}{i}" for i in range(len(vectors))], dtype=object)
        empty = np.full(len(names), None)
        stat0 = np.ones((len(names), 1))
        return StatObject_SB(names, names, empty, empty, stat0, vectors)

    reduced = model.reduced(others).numpy()
    enrol, test = statistics(reduced[:3], "e"), statistics(reduced[3:], "t")
    expected = fast_PLDA_scoring(
        enrol,
        test,
        Ndx(models=enrol.modelset, testsegs=test.segset),
        *(part.numpy() for part in (model.mean, model.loadings, model.residual)),
    ).scoremat
    rows, columns = torch.cartesian_prod(torch.arange(3), torch.arange(5)).T
    found = model.scores(others[:3], others[3:], rows, columns)
    np.testing.assert_allclose(found.reshape(3, 5), expected, rtol=1e-4, atol=1e-4)


def test_it_finds_what_tells_speakers_apart():
    model = fit_plda(*population(80, 8))
    vectors, numbers = population(30, 4, seed=5)
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    labels = numbers[rows] == numbers[columns]
    found = model.scores(vectors, vectors, rows, columns)
    cosine = torch.nn.functional.cosine_similarity(vectors[rows], vectors[columns])
    plda_eer, cosine_eer = (
        equal_error_rate(scores[labels], scores[~labels])[0]
        for scores in (found, cosine)
    )
    assert plda_eer < 0.5 * cosine_eer


def test_the_order_of_the_recordings_does_not_matter():
    vectors, numbers = population(20, 5)
    order = torch.from_numpy(np.random.default_rng(3).permutation(len(vectors)))
    index = torch.arange(10)
    one, other = (
        fit_plda(vectors[rows], numbers[rows]).scores(
            vectors, vectors, index, index + 10
        )
        for rows in (torch.arange(len(vectors)), order)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_more_dimensions_than_recordings():
    vectors, numbers = population(10, 3, dim=64)
    model = fit_plda(vectors, numbers)
    index = torch.arange(20)
    assert model.scores(vectors, vectors, index, index + 5).isfinite().all()


@pytest.mark.parametrize("n_speakers, n_utterances", [(2, 9), (9, 1)])
def test_too_little_to_fit(n_speakers, n_utterances):
    assert fit_plda(*population(n_speakers, n_utterances)) is None


def test_copies_of_one_recording_for_each_speaker():
    vectors, _ = population(9, 1)
    numbers = torch.arange(9).repeat_interleave(5)
    assert fit_plda(vectors[numbers], numbers) is None


def test_it_is_fitted_to_the_vectors_that_it_scores():
    """Of length one, so that their mean square is one; and so is the model's."""
    rng = np.random.default_rng(0)
    speakers = rng.standard_normal((30, 12)) * np.repeat([1.5, 0.2], 6)
    noise = rng.standard_normal((180, 12)) * np.repeat([0.5, 3.0], 6)
    vectors = torch.from_numpy(np.repeat(speakers, 6, axis=0) + noise + 0.7)
    model = fit_plda(vectors, torch.arange(30).repeat_interleave(6))
    spread = model.loadings @ model.loadings.T + model.residual
    whole = torch.trace(spread) + model.mean.square().sum()
    assert whole.item() == pytest.approx(1.0, abs=0.1)
    expected = model.reduced(vectors).mean(dim=0)
    torch.testing.assert_close(model.mean, expected, atol=1e-6, rtol=0)
