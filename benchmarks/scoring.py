#!/usr/bin/env python3
"""Costs of error rates and score normalisation: ours, SpeechBrain's, scikit-learn's.

    python benchmarks/scoring.py [--trials 37611 150000 550894 10000000]
                                 [--files 5000] [--cohort 6000] [--seconds 60]
                                 [--list 550894 137924]

All use the same Gaussian scores and embeddings; error rates are the best of three runs,
normalisation is one run. What is expected to take longer than --seconds, extrapolated
from fewer trials, is left out; SpeechBrain's normalisation is measured on some trials
and multiplied. Memory is the growth of the peak of a separate process.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import markdown, show  # noqa: E402
from local_modules.errors import (  # noqa: E402
    LineParser,
    check_positive,
    exit_status,
)
from local_modules.metrics import cllr, equal_error_rate, min_dcf  # noqa: E402
from local_modules.scoring import (  # noqa: E402
    cohort_statistics,
    normalise_scores,
    pair_products,
)

FOLDER = Path("results/benchmarks/scoring")
TOP_K = 300
EMB_DIM = 192
N_SAMPLED = 200  # trials of SpeechBrain's normalisation


def scores(n_trials: int) -> tuple[np.ndarray, np.ndarray]:
    """As many target as non-target scores, float32."""
    rng = np.random.default_rng(0)
    half = n_trials // 2
    target = rng.standard_normal(half, dtype=np.float32) + 2
    return target, rng.standard_normal(n_trials - half, dtype=np.float32)


def ours(target, nontarget):
    """EER, minDCF and C_llr."""
    equal_error_rate(target, nontarget)
    min_dcf(target, nontarget)
    cllr(target, nontarget)


def scikit_learn(target, nontarget):
    """The ROC alone."""
    from sklearn.metrics import roc_curve

    labels = np.r_[np.ones(len(target), bool), np.zeros(len(nontarget), bool)]
    roc_curve(labels, np.r_[target, nontarget])


def speechbrain_eer(target, nontarget):
    """EER."""
    from speechbrain.utils.metric_stats import EER

    EER(torch.from_numpy(target), torch.from_numpy(nontarget))


def speechbrain_min_dcf(target, nontarget):
    """minDCF, not normalised."""
    from speechbrain.utils.metric_stats import minDCF

    minDCF(torch.from_numpy(target), torch.from_numpy(nontarget))


# Name, function, power of the trials that its time grows with, and memory in bytes.
METRICS = (
    ("ours: EER, minDCF, Cllr", ours, 1, lambda n: 40 * n),
    ("scikit-learn: ROC", scikit_learn, 1, lambda n: 60 * n),
    ("SpeechBrain: EER", speechbrain_eer, 2, lambda n: 40 * n),
    ("SpeechBrain: minDCF", speechbrain_min_dcf, 2, lambda n: 12 * n * n),
)


def embeddings(n: int, seed: int) -> torch.Tensor:
    """Random embeddings of length one, [n, EMB_DIM]."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, EMB_DIM, generator=generator), dim=-1)


def our_normalisation(n_files: int, n_cohort: int) -> float:
    """Seconds for AS-norm of all pairs of files."""
    enrol, test = embeddings(n_files, 1), embeddings(n_files, 2)
    cohort = embeddings(n_cohort, 3)
    start = time.perf_counter()
    one, other = (cohort_statistics(side, cohort, TOP_K) for side in (enrol, test))
    for rows in torch.arange(n_files).split(500):
        raw = enrol[rows] @ test.T
        sides = [value[rows].unsqueeze(1) for value in one]
        normalise_scores(raw, tuple(sides), other)
    return time.perf_counter() - start


def our_list(n_trials: int, n_files: int, n_cohort: int) -> float:
    """Seconds for AS-norm of a list of trials, from the embeddings of its files."""
    files, cohort = embeddings(n_files, 1), embeddings(n_cohort, 3)
    generator = torch.Generator().manual_seed(4)
    sides = torch.randint(n_files, (2, n_trials), generator=generator)
    start = time.perf_counter()
    mean, std = cohort_statistics(files, cohort, TOP_K)
    raw = pair_products(files, files, *sides)
    normalise_scores(raw, *((mean[side], std[side]) for side in sides))
    return time.perf_counter() - start


def speechbrain_normalisation(n_files: int, n_cohort: int) -> float:
    """Seconds for as many trials by the method of its VoxCeleb recipe: for each trial,
    cosines with the whole cohort and the top k of them."""
    enrol, test = embeddings(n_files, 1), embeddings(n_files, 2)
    cohort, similarity = embeddings(n_cohort, 3), torch.nn.CosineSimilarity(dim=-1)
    n_sampled = min(N_SAMPLED, n_files)
    start = time.perf_counter()
    for row in range(n_sampled):
        score = similarity(enrol[row], test[row])
        normed = []
        for side in (enrol[row], test[row]):
            against = similarity(side.unsqueeze(0), cohort)
            against = torch.topk(against, k=min(TOP_K, n_cohort)).values
            normed.append((score - against.mean()) / against.std())
        sum(normed) / 2
    return (time.perf_counter() - start) * n_files * n_files / n_sampled


def best_of_three(function, *arguments) -> float:
    """Seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib(name: str, n_trials: int) -> float:
    """Peak memory of a process that computes a metric, beyond that of making the
    scores."""
    program = (
        "import sys; sys.path[:0] = [{root!r}, {here!r}]; import scoring\n"
        "from benchmarks.measuring import peak_mib\n"
        "pair = scoring.scores({n})\n"
        "function = {{m[0]: m[1] for m in scoring.METRICS}}[{name!r}]\n"
        "function(*(side[:100] for side in pair))\n"
        "before = peak_mib()\n"
        "function(*pair)\n"
        "print(peak_mib() - before)"
    ).format(root=str(ROOT), here=str(ROOT / "benchmarks"), n=n_trials, name=name)
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return float(found.stdout)


def measure_metrics(sizes: list[int], limit: float) -> list[list[str]]:
    """Rows of the table: a cell of seconds and memory for each size."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = []
    for name, function, power, size_of in METRICS:
        row, seconds, before = [name], None, None
        for n in tqdm(sizes, desc=name):
            expected = 0 if seconds is None else seconds * (n / before) ** power
            if expected > limit or size_of(n) > 0.8 * memory:
                row.append("left out")
                continue
            seconds, before = best_of_three(function, *scores(n)), n
            row.append(f"{seconds:.3f} s, {peak_mib(name, n):.0f} MiB")
        rows.append(row)
    return rows


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/scoring.py", lambda: run(argv), stopped="")


def run(argv: list[str]) -> None:
    """Measures and shows."""
    parser = LineParser(
        prog="benchmarks/scoring.py", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--trials", type=int, nargs="+", default=[37611, 150000, 550894, 10**7])
    add("--files", type=int, default=5000)
    add("--cohort", type=int, default=6000)
    add(
        "--list",
        type=int,
        nargs=2,
        default=[550894, 137924],
        metavar=("TRIALS", "FILES"),
        help="default: as many as VoxCeleb1-H",
    )
    add("--seconds", type=float, default=60.0)
    options = parser.parse_args(argv)
    check_positive(options, "trials", "files", "cohort", "list")
    sizes = sorted(options.trials)
    rates = markdown(
        ["trials", *(f"{n:,}" for n in sizes)], measure_metrics(sizes, options.seconds)
    )
    n_files, n_cohort = options.files, options.cohort
    normalisation = markdown(
        [f"AS-norm, cohort of {n_cohort}", "seconds"],
        [
            [
                f"ours, {n_files} x {n_files} trials",
                f"{our_normalisation(n_files, n_cohort):.2f}",
            ],
            [
                "SpeechBrain's recipe, as many (from "
                f"{min(N_SAMPLED, n_files)} of them)",
                f"{speechbrain_normalisation(n_files, n_cohort):.0f}",
            ],
            [
                f"ours, {options.list[0]:,} trials of {options.list[1]:,} files",
                f"{our_list(*options.list, n_cohort):.2f}",
            ],
        ],
    )
    show(f"{rates}\n\n{normalisation}", FOLDER / "scoring.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
