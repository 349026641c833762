"""Processes that talk to each other as under `torchrun`, and pictures as they are
saved."""

import pytest
import torch
from matplotlib.figure import Figure

from tests.programs import Program


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """A function of a function `run(rank, count, folder, ...)` that can be imported, of
    a number of ranks and of what else `run` gets: what it returns on each, and the
    folder."""

    def run_on_ranks(run, count, *more):
        folder = tmp_path_factory.mktemp("ranks")
        programs = [
            Program(_rank, run, rank, count, folder, *more) for rank in range(count)
        ]
        for program in programs:
            output = program.output()
            assert program.status == 0, output
        results = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
        return results, folder

    return run_on_ranks


def _rank(run, rank, count, folder, *more):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    torch.save(run(rank, count, folder, *more), folder / f"{rank}.pt")
    return 0


@pytest.fixture
def figures(monkeypatch):
    """The figures saved during the test."""
    saved = []
    savefig = Figure.savefig

    def keep(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved
