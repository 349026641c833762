"""Processes that talk to each other as under `torchrun`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Forked after the imports, which take longer than what is tested.
FORKS = """
import sys
import torch
{source}

def start(rank, count, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=count
    )
    torch.save(run(rank, count, folder), f"{{folder}}/{{rank}}.pt")

options = int(sys.argv[1]), sys.argv[2]
torch.multiprocessing.start_processes(start, options, options[0], start_method="fork")
"""


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """A function of source that defines `run(rank, count, folder)` and of a number of
    ranks: what it returns on each, and the folder."""

    def run_on_ranks(source, count):
        folder = tmp_path_factory.mktemp("ranks")
        subprocess.run(
            [sys.executable, "-c", FORKS.format(source=source), f"{count}", folder],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
        results = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
        return results, folder

    return run_on_ranks
