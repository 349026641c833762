#!/usr/bin/env python3
"""Costs of a classifier of many speakers: whole on each rank, or split over the ranks.

    python benchmarks/classes.py [--classes 10000 100000 1000000] [--batch 64]
                                 [--emb_dim 192] [--share 0.1] [--steps 3] [--gib 7]

Two processes, over gloo, run forward and backward of the classifier and the
additive-angular-margin loss, with the mean of the gradients over the ranks for the
whole matrix; without an optimizer (Adam would add two numbers to each weight). Memory
is the growth of a process up to its peak; time is the CPU time of a process, because
the machine may be shared, the median of the steps after the first. Sizes for which both
processes together would need more than --gib are left out; 10 million speakers are
extrapolated from the two largest sizes measured.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import markdown, peak_mib, show  # noqa: E402
from local_modules.class_parallel import SplitClassifier  # noqa: E402
from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    check_positive,
    exit_status,
)
from local_modules.losses import AdditiveAngularMargin  # noqa: E402

FOLDER = Path("results/benchmarks/classes")
N_RANKS = 2
SCALE = 30.0
MOST = 10**7  # speakers to extrapolate to
COPIES = 6  # of the matrix that a step may need, to decide what to leave out


def whole(n_classes: int, options: argparse.Namespace):
    """The loss of a batch, with SpeechBrain's classifier under DDP."""
    classifier = Classifier(options.emb_dim, out_neurons=n_classes)
    classifier = DistributedDataParallel(classifier)
    loss = AdditiveAngularMargin(angular_scale=SCALE, angular_margin=0.2)
    return lambda embeddings, targets: loss(classifier(embeddings), targets)


def split(n_classes: int, options: argparse.Namespace, share: float = 1.0):
    """The loss of a batch, with the rows split over the ranks."""
    classifier = SplitClassifier(options.emb_dim, n_classes, SCALE, share)
    loss = AdditiveAngularMargin(angular_scale=SCALE, angular_margin=0.2)
    return lambda embeddings, targets: loss(*classifier(embeddings, targets)[:2])


def drawn(n_classes: int, options: argparse.Namespace):
    """As `split`, with a share of the rows drawn for each step."""
    return split(n_classes, options, options.share)


WAYS = (whole, split, drawn)


def run_rank(rank, make, n_classes, options, folder):
    """One process of a measurement; writes its MiB and seconds per step to a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=N_RANKS
    )
    before = peak_mib()
    compute = make(n_classes, options)
    times = []
    for step in range(1 + options.steps):
        torch.manual_seed(N_RANKS * step + rank)
        embeddings = torch.randn(options.batch, 1, options.emb_dim, requires_grad=True)
        targets = torch.randint(n_classes, (options.batch, 1))
        start = time.process_time()
        compute(embeddings, targets).backward()
        times.append(time.process_time() - start)
    result = peak_mib() - before, statistics.median(times[1:])
    torch.save(result, f"{folder}/{rank}.pt")


def measure(make, n_classes: int, options: argparse.Namespace) -> tuple[float, float]:
    """MiB and CPU seconds per step of a process, the larger of the two."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            run_rank,
            (make, n_classes, options, folder),
            N_RANKS,
            start_method="fork",  # each starts without the memory of earlier ones
        )
        results = [torch.load(f"{folder}/{rank}.pt") for rank in range(N_RANKS)]
    return tuple(max(values) for values in zip(*results, strict=True))


def fits(make, n_classes: int, options: argparse.Namespace) -> bool:
    """Whether the most that all processes together may need is allowed."""
    n_rows = n_classes * (N_RANKS if make is whole else 1)
    n_bytes = COPIES * 4 * n_rows * (options.emb_dim + options.batch)
    return n_bytes <= options.gib * 2**30


def cell(found: tuple[float, float]) -> str:
    """Memory and time as the table shows them."""
    mib, seconds = found
    return f"{mib:,.0f} MiB, {seconds:,.3f} s"


def extrapolated(
    measured: dict[int, tuple[float, float]],
) -> tuple[tuple[float, float], str]:
    """Memory and time for `MOST` speakers, and the calculation.

    Arguments
    ---------
    measured : dict
        MiB and seconds by the number of speakers, for two numbers at least.

    Returns
    -------
    found : tuple of float
        MiB and seconds.
    arithmetic : str
        The calculation in words.
    """
    smaller, larger = sorted(measured)[-2:]
    slopes = [
        (high - low) / (larger - smaller)
        for low, high in zip(measured[smaller], measured[larger], strict=True)
    ]
    found = tuple(
        high + slope * (MOST - larger)
        for high, slope in zip(measured[larger], slopes, strict=True)
    )
    arithmetic = (
        f"{slopes[0] * 2**20:,.0f} bytes and {slopes[1] * 1e6:.2f} microseconds per "
        f"speaker between {smaller:,} and {larger:,}; x {MOST - larger:,} more"
    )
    return found, arithmetic


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="benchmarks/classes.py", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    add("--batch", type=int, default=64, help="utterances per process")
    add("--emb_dim", type=int, default=192)
    add("--share", type=float, default=0.1, help="of the rows, drawn per step")
    add("--steps", type=int, default=3)
    add("--gib", type=float, default=7.0)
    options = parser.parse_args(argv)
    check_positive(options, "classes", "batch", "emb_dim", "share", "steps")
    for make in WAYS:
        n_sizes = len({n for n in options.classes if fits(make, n, options)})
        if n_sizes < 2:
            raise InputError(
                f"--classes, --gib {options.gib:g}: {make.__name__} can be measured "
                f"with {n_sizes} of them; two are needed to extrapolate from"
            )
    return options


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/classes.py", lambda: run(parse(argv)), stopped="")


def run(options: argparse.Namespace) -> None:
    """Measures and shows."""
    names = ("whole", "split", f"split, {options.share:.0%} drawn")
    found = {make: {} for make in WAYS}
    rows = []
    for n_classes in sorted(set(options.classes)):
        row = [f"{n_classes:,}"]
        for make in WAYS:
            if not fits(make, n_classes, options):
                row.append("left out")
                continue
            found[make][n_classes] = measure(make, n_classes, options)
            row.append(cell(found[make][n_classes]))
        rows.append(row)
    far = [extrapolated(found[make]) for make in WAYS]
    rows.append([f"{MOST:,}, extrapolated", *(cell(result) for result, _ in far)])
    table = markdown([f"speakers, {N_RANKS} ranks", *names], rows)
    arithmetic = "\n".join(
        f"- {name}: {words}" for name, (_, words) in zip(names, far, strict=True)
    )
    show(f"{table}\n\n{arithmetic}", FOLDER / "classes.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
