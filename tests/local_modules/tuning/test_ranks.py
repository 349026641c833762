"""The processes of `torchrun` as one trainer."""

import pytest
import torch

from local_modules.tuning import ranks as module
from local_modules.tuning.ranks import Ranks
from local_modules.tuning.storage import StorageGone
from tests.local_modules.tuning import quick_study
from tests.programs import Program


def train(hparams_file, run_opts, overrides, cache, on_epoch, test):
    on_epoch([])


def lose_the_database(folder, rank):
    """One of two ranks, of which the first alone has a database to lose."""
    module.SECONDS_TO_MEET = 2.0
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    ranks = Ranks(quick_study.begin(folder / str(rank), None, 1), train)

    def on_epoch(epochs):
        raise StorageGone("the database is away")

    if rank == 0:
        with pytest.raises(StorageGone):
            ranks.train("a.yaml", on_epoch=on_epoch)
        ranks.dismiss()
    else:
        ranks.follow()
    return 0


def test_an_error_between_two_epochs_leaves_the_ranks_in_step(tmp_path):
    programs = [Program(lose_the_database, tmp_path, rank) for rank in (0, 1)]
    for program in programs:
        output = program.output()
        assert program.status == 0, output
