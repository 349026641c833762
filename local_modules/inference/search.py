"""The nearest of many vectors, exactly."""

import numpy as np

EXACT_UP_TO = 300_000  # beyond, one product with all takes longer than one waits for
SHORTLIST = 64
BLOCK = 65_536  # vectors at a time
ROUNDING = 1e-5  # of sums in float32, beyond what 8 bits lose


class NearestVectors:
    """Finds the vectors whose product with another one is the largest.

    Few are all multiplied. Many are searched by faiss in 8 bits first, a quarter of the
    memory to pass through, and the best of those multiplied in full. How far 8 bits
    move a vector is known, so that a shortlist that could miss one is made longer: the
    answer is the same.

    Arguments
    ---------
    vectors : numpy.ndarray
        float32, [n, dim].
    exact_up_to : int
        How many are few.

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
        """The nearest.

        Arguments
        ---------
        vector : numpy.ndarray
            float32, [dim].
        k : int
            How many, at most as many as there are.

        Returns
        -------
        numpy.ndarray
            Their rows, the nearest first; of equals, the one that was given first.
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
            # What was left out comes no nearer than this.
            if n == len(self._vectors) or products[-1] > rounded[0, -1] + error:
                return rows
            n *= 8


def _best(rows, products, k) -> tuple[np.ndarray, np.ndarray]:
    if k < len(rows):
        # All that equal the last of them, for the order below to choose from.
        kept = products >= np.partition(products, -k)[-k]
        rows, products = rows[kept], products[kept]
    order = np.lexsort((rows, -products))[:k]
    return rows[order], products[order]


def _in_8_bits(vectors):
    import faiss  # here: few have that many voices

    kind = faiss.ScalarQuantizer.QT_8bit
    product = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexScalarQuantizer(vectors.shape[1], kind, product)
    index.train(vectors)
    index.add(vectors)
    return index
