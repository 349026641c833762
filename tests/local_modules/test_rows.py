"""Rows of a matrix over ranks, against cutting the whole matrix."""

import pytest
import torch

from local_modules import rows as module
from local_modules.rows import copy_common, load_rows, rows_of, save_rows


@pytest.mark.parametrize("n_rows", [1, 7, 10, 1001])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_row_is_of_one_rank_and_the_shares_are_even(count, n_rows):
    shares = [rows_of(rank, count, n_rows) for rank in range(count)]
    assert [row for rows in shares for row in rows] == list(range(n_rows))
    sizes = [len(rows) for rows in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("savers", [1, 2, 3])
@pytest.mark.parametrize("loaders", [1, 2, 4])
def test_what_some_ranks_save_any_others_load(savers, loaders, tmp_path, monkeypatch):
    whole = {"weight": torch.randn(11, 3), "moment": torch.randn(11)}
    for rank in range(savers):
        monkeypatch.setattr(module, "rank_and_count", lambda r=rank: (r, savers))
        rows = rows_of(rank, savers, 11)
        part = {name: value[rows.start : rows.stop] for name, value in whole.items()}
        save_rows(tmp_path / "rows.ckpt", rows, part)
    for rank in range(loaders):
        rows = rows_of(rank, loaders, 11)
        found = load_rows(tmp_path / "rows.ckpt", rows)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(found[name], value[rows.start : rows.stop])


def test_rows_that_only_one_has_are_left_alone():
    destination = torch.zeros(4)
    copy_common(range(5, 8), torch.tensor([5.0, 6.0, 7.0]), range(0, 4), destination)
    assert destination.tolist() == [0, 0, 0, 0]
    copy_common(range(2, 5), torch.tensor([2.0, 3.0, 4.0]), range(0, 4), destination)
    assert destination.tolist() == [0, 0, 2, 3]
