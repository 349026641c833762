"""Exact nearest-neighbour search in many vectors."""

import numpy as np

EXACT_UP_TO = 300_000  # beyond this, a product with all vectors takes too long
SHORTLIST = 64
BLOCK = 65_536  # vectors at a time
ROUNDING = 1e-5  # error of sums in float32, on top of that of 8 bits


class NearestVectors:
    """Finds the vectors with the largest inner product with a query.

    Few vectors are all multiplied. Many are first searched by faiss in 8 bits, which
    reads a quarter of the memory, and the best of those are multiplied in full. The
    error of 8 bits is known, so a shortlist that could miss a vector is extended: the
    result is exact.

    Arguments
    ---------
    vectors : numpy.ndarray
        float32, [n, dim].
    exact_up_to : int
        Up to how many vectors all are multiplied.

    Example
    -------
    >>> nearest = NearestVectors(np.eye(3, dtype=np.float32))
    >>> nearest(np.array([0.6, 0.0, 0.8], np.float32), 2).tolist()
    [2, 0]
    """

    def __init__(self, vectors: np.ndarray, exact_up_to: int = EXACT_UP_TO):
        self._vectors = vectors
        self._index = None
        if len(vectors) > exact_up_to:
            self._index = _in_8_bits(vectors)
            starts = range(0, len(vectors), BLOCK)
            blocks = ((s, vectors[s : s + BLOCK]) for s in starts)
            self._moved_by = max(
                np.linalg.norm(
                    block - self._index.reconstruct_n(start, len(block)), axis=1
                ).max()
                for start, block in blocks
            )

    def __call__(self, vector: np.ndarray, k: int) -> np.ndarray:
        """Finds the vectors nearest to a query.

        Arguments
        ---------
        vector : numpy.ndarray
            float32, [dim].
        k : int
            How many to find; at most all are returned.

        Returns
        -------
        numpy.ndarray
            Their rows, nearest first; equally near ones in the order given.
        """
        if self._index is None:
            rows, _ = _best(np.arange(len(self._vectors)), self._vectors @ vector, k)
            return rows
        n, k = SHORTLIST, min(k, len(self._vectors))
        error = self._moved_by * np.linalg.norm(vector) + ROUNDING
        while True:
            n = min(max(n, k), len(self._vectors))
            rounded, (shortlist,) = self._index.search(vector[np.newaxis], n)
            products = self._vectors[shortlist] @ vector
            rows, products = _best(shortlist, products, k)
            # This bounds the products of all vectors left out.
            if n == len(self._vectors) or products[-1] > rounded[0, -1] + error:
                return rows
            n *= 8


def _best(rows, products, k) -> tuple[np.ndarray, np.ndarray]:
    if k < len(rows):
        # Keeps all ties with the last one, for the sort below to choose from.
        kept = products >= np.partition(products, -k)[-k]
        rows, products = rows[kept], products[kept]
    order = np.lexsort((rows, -products))[:k]
    return rows[order], products[order]


def _in_8_bits(vectors):
    import faiss  # here, because it is rarely needed

    kind = faiss.ScalarQuantizer.QT_8bit
    product = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexScalarQuantizer(vectors.shape[1], kind, product)
    index.train(vectors)
    index.add(vectors)
    return index
