#!/usr/bin/env python3
"""Which system is the most accurate, for the same minutes on the same cores?

    python benchmarks/accuracy.py [--rows NAME ...] [--minutes 20] [--seeds 3]
                                  [--threads 2] [--name NAME] [--table FILE]
                                  [--metadata FILE --by COLUMN] [--key value ...]

Trains every row of benchmarks/accuracy.yaml with every seed, on the same manifests, for
the same minutes (including validation) and with the same number of threads. The epoch
is chosen on `valid`; `test` is scored once, by the cosine and by the calibrated ratios
of each model folder, and nothing is chosen by it. Intervals are 95 %, of the mean over
the seeds, by resampling the test speakers. --key value goes to each row whose recipe
has that key. Run again, the same command continues; rows and seeds can be added at any
time, and the table has all finished seeds of its rows.

All trainings make glibc's allocator keep its memory: that changes nothing for our
Conformer, and makes SpeechBrain's ECAPA-TDNN train 1.7 times faster.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy_plan import (  # noqa: E402
    MANIFESTS,
    Plan,
    Row,
    make_plan,
    read_rows,
    row_values,
)
from benchmarks.accuracy_table import (  # noqa: E402
    COSINE,
    Summary,
    picture,
    summarise,
    tables,
)
from benchmarks.measuring import (  # noqa: E402
    children_cpu_seconds,
    once,
    run_to_its_end,
    typed,
)
from local_modules import config  # noqa: E402
from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    RunError,
    check_positive,
    exit_status,
)
from local_modules.evaluation.backend import CALIBRATED, cosines  # noqa: E402
from local_modules.evaluation.confidence import speakers_of  # noqa: E402
from local_modules.evaluation.results import Scored  # noqa: E402
from local_modules.files import replacing  # noqa: E402
from local_modules.inference.embedding_store import (  # noqa: E402
    EMBEDDINGS,
    EmbeddingStore,
)
from local_modules.inference.extraction import embed_list, recordings_of  # noqa: E402
from local_modules.inference.speaker_model import SpeakerModel  # noqa: E402
from local_modules.metrics import equal_error_rate, min_dcf  # noqa: E402
from local_modules.scoring import trial_rows  # noqa: E402

CLIP_SECONDS = 3.0  # what operations and real-time factor are measured on
RESAMPLES = 1000
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}


def run_row(row: Row, seed: int, plan: Plan) -> dict:
    """Trains and measures one row with one seed.

    Returns
    -------
    dict
        What the table and the picture need; rates are fractions. The bootstrap's
        replicates go to `replicates.npz` beside it.
    """
    folder = plan.folder / row.name / f"{seed}"
    values = row_values(row, seed, plan)
    command = [sys.executable, str(ROOT / row.program), row.recipe_file, *plan.flags]
    command += ["--noprogressbar", *typed(values)]
    usage = train(row, command, folder, plan.threads)

    metrics = json.loads((folder / "metrics.json").read_text())
    epochs = read_epochs(folder, metrics, plan.n_train)
    n_seen = sum(epoch["train_utterances"] for epoch in epochs)
    model = SpeakerModel(str(folder / "model"), trust=True)  # trained just now
    rates = {name: {} for name in plan.parts}
    replicates = {}
    for way, scored in score(model, folder, plan).items():
        for name, rows in plan.parts.items():
            part = scored.part(rows)
            rates[name][f"{way}/eer"] = equal_error_rate(*part.pair)[0]
            rates[name][f"{way}/min_dcf"] = min_dcf(*part.pair)[0]
            found = part.replicates(RESAMPLES)
            replicates[f"{name}/{way}/eer"] = found["eer"]
            replicates[f"{name}/{way}/min_dcf"] = found["min_dcf_0.01"]
    np.savez_compressed(folder / "replicates.npz", **replicates)
    return {
        "title": row.title,
        "seed": seed,
        "values": values,
        "recipe": row.settings,
        "n_parameters": metrics["n_parameters"],
        "macs": multiply_adds(
            model.classifier.mods.embedding_model, clip_features(model)
        ),
        "real_time_factor": real_time_factor(model),
        "passes": n_seen / plan.n_train,
        "utterances_per_second": n_seen / metrics["train_seconds"],
        "train_seconds": metrics["train_seconds"],
        "valid_eer": metrics["valid"]["eer"],
        "test": rates,
        "curve": [[epoch["seconds"], epoch["valid_eer"]] for epoch in epochs],
        "usage": usage,
    }


def train(row: Row, command: list[str], folder: Path, threads: int) -> dict:
    """Runs a training, or continues it.

    Returns
    -------
    dict
        What shows whether it had the machine to itself: CPU seconds and elapsed
        seconds of the process, the load before it, the machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    continued = (folder / "save").exists()
    load = os.getloadavg()[0]
    cpu, start = children_cpu_seconds(), time.monotonic()
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        status = run_to_its_end(
            command,
            env={
                **os.environ,
                **ALLOCATOR,
                "OMP_NUM_THREADS": f"{threads}",
                "MKL_NUM_THREADS": f"{threads}",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if status != 0:
        said = (folder / "output.txt").read_text(encoding="utf-8").strip()
        last = said.splitlines()[-1] if said else "it printed nothing"
        raise RunError(
            f"{row.name}: ended with status {status}: {last} ({folder / 'output.txt'})"
        )
    seconds = time.monotonic() - start
    return {
        "cpu_seconds": children_cpu_seconds() - cpu,
        "seconds": seconds,
        "load_before": load,
        "continued": continued,  # then the seconds are since the last start
        "threads": threads,
        "cpu_count": os.cpu_count(),
        "machine": platform.platform(),
        "torch": torch.__version__,
    }


def read_epochs(folder: Path, metrics: Mapping, n_train: int) -> list[dict]:
    """The rows of a training's history; one, for all utterances, without epochs."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))["epochs"]
        for path in folder.glob("save/CKPT*/history.ckpt")
    ]
    whole = {
        "seconds": metrics["train_seconds"],
        "valid_eer": metrics["valid"]["eer"],
        "train_utterances": n_train,
    }
    return max(found, key=len, default=[whole])


def score(model: SpeakerModel, folder: Path, plan: Plan) -> dict[str, Scored]:
    """Cosines and calibrated ratios of the test trials."""
    names = list(dict.fromkeys([*plan.trials.enrol, *plan.trials.test]))
    trials = plan.folder / MANIFESTS / "test_trials.txt"
    with EmbeddingStore(folder / EMBEDDINGS) as store:
        # Whole, as in training, whatever the length.
        found, failures = embed_list(
            model, names, trials, plan.data_folder, store, window_seconds=float("inf")
        )
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(f"{name}: can't be embedded, so no row can be scored: {reason}")
    recordings = recordings_of([found[name] for name in names])
    _, *rows = trial_rows(names, plan.trials)
    sides = recordings, recordings, *rows
    scores = {
        COSINE: cosines(*sides).numpy(),
        CALIBRATED: model.backend.scores(*sides)[CALIBRATED],
    }
    labels = plan.trials.labels
    speakers = speakers_of(labels, plan.trials.enrol, plan.trials.test)
    return {way: Scored(values, labels, *speakers) for way, values in scores.items()}


@torch.no_grad()
def clip_features(model: SpeakerModel) -> torch.Tensor:
    """The network's input for a clip, [1, frames, features]."""
    wav = torch.randn(1, round(CLIP_SECONDS * model.sample_rate))
    feats = model.classifier.mods.compute_features(wav)
    return model.classifier.mods.mean_var_norm(feats, torch.ones(1))


@torch.no_grad()
def multiply_adds(network: torch.nn.Module, feats: torch.Tensor) -> int:
    """Multiply-adds of convolutions, matrices and attention for a batch of features."""
    # The counter counts products, but not the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(feats)
    return counter.get_total_flops() // 2


def real_time_factor(model: SpeakerModel) -> float:
    """Seconds per second of speech, including features, on one thread; the median."""
    wav = torch.randn(round(CLIP_SECONDS * model.sample_rate))
    timer = Timer("model.embed([wav])", globals={"model": model, "wav": wav})
    return timer.blocked_autorange(min_run_time=1.0).median / CLIP_SECONDS


def legend(rows: Mapping[str, Summary]) -> str:
    """How to read the table."""
    usage = next(iter(rows.values())).runs[0]["usage"]
    return (
        f"± is the standard deviation over the seeds, [ ] the 95 % interval by "
        f"resampling the test speakers, p that of the difference in EER to the first "
        f"row; scores are cosines unless they are calibrated. MACs and "
        f"real-time factor (one thread) are for {CLIP_SECONDS:g} s of speech, "
        f"utterances/s include validation. Cores busy: if well below another row's, "
        f"something disturbed the training. Threads: {usage['threads']}, of "
        f"{usage['cpu_count']} cores; {usage['machine']}, torch {usage['torch']}."
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program; `rest` is for the recipes."""
    parser = LineParser(
        prog="benchmarks/accuracy.py",
        description=__doc__.splitlines()[0],
        epilog="--key value: as for train_speaker.py, for the recipes with such a key",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="NAME", help="of the table; default: all")
    add("--minutes", type=float, default=20.0, help="per training")
    add("--seeds", type=int, default=3, help="how often each row is trained")
    add("--threads", type=int, default=2, help="per training")
    add("--name", help="of the folder; default: <corpus>_<minutes>min")
    add("--table", metavar="FILE", default=str(ROOT / "benchmarks" / "accuracy.yaml"))
    add("--metadata", metavar="FILE", help="CSV or TSV with a column path")
    add("--by", metavar="COLUMN", help="of it: also rates for each value")
    options, options.rest = parser.parse_known_args(argv)
    check_positive(options, "minutes", "seeds", "threads")
    if (options.metadata is None) != (options.by is None):
        raise InputError("--metadata and --by: give both, or neither")
    options.command = shlex.join(["python", "benchmarks/accuracy.py", *argv])
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, and shows all results."""
    rows = read_rows(options.table)
    wanted = options.rows or list(rows)
    config.check_keys(wanted, rows, "--rows ", options.table)
    plan = make_plan(options, rows)
    jobs = [(seed, n) for seed in range(1, options.seeds + 1) for n in wanted]
    chosen = [rows[name] for name in wanted]
    results = {row.name: results_of(row, plan) for row in chosen}
    with tqdm(jobs, desc="trainings", unit="training") as progress:
        for seed, name in progress:
            progress.set_postfix_str(f"{name}, seed {seed}")
            path = plan.folder / name / f"{seed}" / "result.json"
            once(path, lambda n=name, s=seed: run_row(rows[n], s, plan))
            results[name] = results_of(rows[name], plan)
            show(results, plan, options)
    text = (plan.folder / "accuracy.md").read_text(encoding="utf-8")
    print(f"\n{text}")
    for what, suffix in (("table", "md"), ("picture", "png")):
        print(f"{what:8} {plan.folder / f'accuracy.{suffix}'}")


def results_of(row: Row, plan: Plan) -> dict[Path, dict]:
    """Finished results of a row, by folder: of every seed, requested now or earlier.

    Raises
    ------
    InputError
        One was made with other values than the table or the recipe has now.
    """
    results = {}
    paths = (plan.folder / row.name).glob("*/result.json")
    for path in sorted(paths, key=lambda path: int(path.parent.name)):
        result = json.loads(path.read_text(encoding="utf-8"))
        values = row_values(row, result["seed"], plan)
        if (result["values"], result["recipe"]) != (values, row.settings):
            raise InputError(
                f"{path}: was made with other values than the table or the recipe has "
                f"for {row.name} now; give the row another name"
            )
        results[path.parent] = result
    return results


def show(results: Mapping[str, dict], plan: Plan, options: argparse.Namespace) -> None:
    """Writes the table and the picture of the finished trainings."""
    summaries = {name: summarise(done) for name, done in results.items() if done}
    text = "\n\n".join(
        (f"`{options.command}`", tables(summaries, list(plan.parts)), legend(summaries))
    )
    with replacing(plan.folder / "accuracy.md") as file:
        file.write(f"{text}\n")
    picture(summaries, plan.folder / "accuracy.png")


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/accuracy.py", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
