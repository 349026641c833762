"""The nearest vectors, few and many, against a sort of all products."""

import numpy as np
import pytest

from local_modules.inference.nearest import NearestVectors

DIM = 24


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def scattered(rng):
    return unit(normal(rng, 3000, DIM))


def crowded(rng):
    """Families whose members lie nearer to each other than 8 bits can tell."""
    families = np.repeat(normal(rng, 10, DIM), 200, axis=0)
    return unit(families + 1e-4 * normal(rng, 2000, DIM))


def lopsided(rng):
    """An outlier stretches the 8 bits over what all others use little of."""
    vectors = normal(rng, 1000, DIM)
    vectors[0] *= 1000
    return vectors


@pytest.mark.parametrize("draw", [scattered, crowded, lopsided])
@pytest.mark.parametrize("exact_up_to", [0, 10**6])
@pytest.mark.parametrize("k", [1, 5, 70])
def test_the_same_as_by_sorting_all(draw, exact_up_to, k):
    rng = np.random.default_rng(0)
    vectors = draw(rng)
    nearest = NearestVectors(vectors, exact_up_to)
    queries = [normal(rng, DIM), vectors[7], -vectors[7]]
    for query in queries:
        products = vectors @ query
        expected = np.argsort(-products, kind="stable")[:k]
        found = nearest(query, k)
        assert len(set(found)) == k
        # Not row by row: products of another order of sums differ in the last bit.
        np.testing.assert_allclose(products[found], products[expected], atol=1e-5)


@pytest.mark.parametrize("exact_up_to", [0, 10**6])
def test_of_equals_the_first(exact_up_to):
    vectors = np.ones((500, DIM), np.float32)
    vectors[100] *= 2
    nearest = NearestVectors(vectors, exact_up_to)
    assert nearest(vectors[0], 4).tolist() == [100, 0, 1, 2]


@pytest.mark.parametrize("exact_up_to", [0, 10])
def test_asked_for_more_than_there_are(exact_up_to):
    nearest = NearestVectors(np.eye(3, dtype=np.float32), exact_up_to)
    assert nearest(np.array([0.0, 2.0, 1.0], np.float32), 9).tolist() == [1, 2, 0]
