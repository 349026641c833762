"""Rows of a matrix split over the ranks of `torchrun`: which rank has which, and their
files, which any number of ranks can load."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from local_modules.distributed import rank_and_count


def rows_of(rank: int, count: int, n_rows: int) -> range:
    """The rows of a matrix that a rank has.

    Example
    -------
    >>> [rows_of(rank, 3, 10) for rank in range(3)]
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    return range(rank * n_rows // count, (rank + 1) * n_rows // count)


def save_rows(
    path: str | os.PathLike, rows: range, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Saves this rank's rows of some matrices in a separate file, beside the first
    rank's.

    Arguments
    ---------
    path : str or os.PathLike
        The first rank's file.
    rows : range
        Their numbers.
    tensors : mapping of str to torch.Tensor
        These rows of each matrix.
    """
    rank, _ = rank_and_count()
    path = Path(f"{path}.{rank}" if rank else path)
    torch.save({"start": rows.start, "tensors": dict(tensors)}, path)


def load_rows(path: str | os.PathLike, rows: range) -> dict[str, torch.Tensor]:
    """Loads rows that any number of ranks have saved.

    Arguments
    ---------
    path : str or os.PathLike
        The first rank's file.
    rows : range
        Numbers of the rows to load.

    Returns
    -------
    dict of str to torch.Tensor
        These rows of each matrix, on the CPU.

    Example
    -------
    >>> path = getfixture("tmp_path") / "numbers.ckpt"
    >>> save_rows(path, range(10, 13), {"numbers": torch.tensor([[1], [2], [3]])})
    >>> load_rows(path, range(11, 13))
    {'numbers': tensor([[2],
            [3]])}
    """
    path = Path(path)
    found = {}
    for part in [path, *path.parent.glob(f"{path.name}.*")]:
        # Memory-mapped, so that only the rows copied are read.
        saved = torch.load(part, map_location="cpu", mmap=True, weights_only=True)
        for name, value in saved["tensors"].items():
            if name not in found:
                found[name] = value.new_empty(len(rows), *value.shape[1:])
            theirs = range(saved["start"], saved["start"] + len(value))
            copy_common(theirs, value, rows, found[name])
    return found


def copy_common(
    source_rows: range, source: torch.Tensor, rows: range, destination: torch.Tensor
) -> None:
    """Copies the rows that two tensors have in common from one to the other."""
    start = max(source_rows.start, rows.start)
    stop = min(source_rows.stop, rows.stop)
    if start < stop:
        destination[start - rows.start : stop - rows.start] = source[
            start - source_rows.start : stop - source_rows.start
        ]
