#!/usr/bin/env python3
"""Costs of a training step: crops per second and share of the device's peak.

    python benchmarks/throughput.py [--rows NAME ...] [--modes NAME ...]
                                    [--device cuda] [--seconds 20] [--speakers 7205]
                                    [--batch_size N] [--crop_seconds S]

Each row trains on random crops, all in memory and without augmentation, so that only
the network and its optimiser are measured: ours by train_speaker.py's `SpeakerBrain`;
SpeechBrain's ECAPA-TDNN with the classes of its VoxCeleb recipe as shipped;
torchaudio's Conformer in place of ours in mfa_conformer.yaml. --speakers is the number
of classes, multiplied by three if a recipe has three speeds.

Operations are those of matrix products and convolutions, without features; a
multiply-add is two, and a step takes three times the forward pass. They are counted,
and so is what the forward pass keeps for the backward pass, in float32: the larger part
of a GPU's memory. The peak is that of a product of two large matrices on the same
device, in the same precision. On a CPU, seconds are CPU time, so rates are per core.
After an interruption, the same command continues.
"""

import argparse
import functools
import gc
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import speechbrain as sb
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import markdown, once, show  # noqa: E402
from benchmarks.throughput_systems import (  # noqa: E402
    FOLDER,
    HOP,
    MODES,
    N_MELS,
    RATE,
    ROWS,
    Mode,
    Row,
)
from local_modules.audio import ReadableBatch  # noqa: E402
from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    check_positive,
    exit_status,
)

WARM_UP = 2  # steps, which include compilation
MATRIX = {"cuda": 8192, "cpu": 512}  # size of the matrices whose product gives the peak
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_batch(batch_size: int, seconds: float, n_speakers: int) -> ReadableBatch:
    """Noise instead of speech, which takes the same time."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(n_speakers, (batch_size,), generator=generator)
    return ReadableBatch(
        [
            {
                "id": str(number),
                "sig": torch.randn(round(seconds * RATE), generator=generator),
                "spk_id_encoded": target.view(1),
            }
            for number, target in enumerate(targets)
        ]
    )


class Counts(NamedTuple):
    """What a training step needs, for one or several crops, on any device.

    Arguments
    ---------
    operations : float
        Floating-point operations.
    bytes_kept : float
        Bytes that the forward pass keeps for the backward pass in float32.
    """

    operations: float
    bytes_kept: float


def count(row: Row, n_speakers: int, seconds: float) -> Counts:
    """Counts for one crop."""
    modules = row.make(n_speakers, MODES["fp32"], "cpu").modules.to("meta")
    # From the difference of two batches, because weights are kept too.
    two, four = (count_batch(modules, n, seconds) for n in (2, 4))
    return Counts(*((more - less) / 2 for less, more in zip(two, four, strict=True)))


def count_batch(modules, batch_size: int, seconds: float) -> Counts:
    """Counts without computing: all tensors are of shape only."""
    n_frames = 1 + round(seconds * RATE) // HOP
    feats = torch.empty(batch_size, n_frames, N_MELS, device="meta")
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, keeping:
        cosines = modules["classifier"](modules["embedding_model"](feats, None))
    del cosines  # kept until here, so that no storage's address is reused
    # Only forward: backward, torch counts a depthwise convolution as a full one.
    return Counts(3 * counter.get_total_flops(), sum(kept.values()))


def start(brain: sb.Brain) -> None:
    """What `fit` does before its first step."""
    brain.on_fit_start()
    brain.modules.train()
    brain.optimizer_step = 0


def synchronise(device: str) -> None:
    """Waits until a GPU has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak(device: str, precision: str, seconds: float) -> dict:
    """`operations` per second in the product of two large matrices."""
    n = MATRIX[torch.device(device).type]
    one, other = torch.randn(2, n, n, dtype=DTYPES[precision], device=device)
    n_done, taken = repeat(lambda: one @ other, device, seconds)
    return {"operations": 2 * n**3 * n_done / taken}


def repeat(step: Callable, device: str, seconds: float) -> tuple[int, float]:
    """Repeats a step for `seconds`, after a warm-up; returns the number of steps and
    the time that they took."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    for _ in range(WARM_UP):
        step()
    synchronise(device)
    n_done, begin = 0, clock()
    while n_done == 0 or clock() - begin < seconds:
        step()
        n_done += 1
    synchronise(device)
    return n_done, clock() - begin


def measure(row: Row, mode: Mode, options: argparse.Namespace) -> dict:
    """Trains a row for some seconds.

    Returns
    -------
    dict
        `crops` per second, and `gib`, the peak memory of a GPU; empty if its memory is
        too small.
    """
    device = options.device
    on_gpu = device.startswith("cuda")
    n_speakers = row.n_speeds * options.speakers
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        brain = row.make(n_speakers, mode, device)
        start(brain)
        batch = random_batch(*size_of(row, options), n_speakers)

        def step():
            brain.step += 1
            brain.fit_batch(batch)

        n_done, taken = repeat(step, device, options.seconds)
    except torch.OutOfMemoryError:
        return {}
    finally:
        brain = batch = None
        torch.compiler.reset()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    return {
        "crops": n_done * size_of(row, options)[0] / taken,
        "gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
    }


def size_of(row: Row, options: argparse.Namespace) -> tuple[int, float]:
    """Crops per step and their seconds: the row's own, or those requested."""
    return (
        options.batch_size or row.batch_size,
        options.crop_seconds or row.crop_seconds,
    )


def table(options: argparse.Namespace) -> str:
    """All rows in all modes."""
    modes = {name: MODES[name] for name in options.modes}
    device = device_name(options.device)

    def kept(measure: Callable[[], dict], *name) -> dict:
        """What was measured, now or before."""
        name = " ".join(str(part) for part in (device, torch.__version__, *name))
        path = FOLDER / (re.sub(r"[^\w.]+", "_", name) + ".json")
        found = once(path, measure)
        if not found:  # there may be more memory another time
            path.unlink()
        return found

    peaks = {}
    for precision in sorted({mode.precision for mode in modes.values()}):
        measure_peak = functools.partial(peak, options.device, precision, 1.0)
        peaks[precision] = kept(measure_peak, "peak", precision)["operations"]
    lines = []
    for name in tqdm(options.rows, desc="rows"):
        row = ROWS[name]
        batch_size, seconds = size_of(row, options)
        counts = count(row, row.n_speeds * options.speakers, seconds)
        for mode_name, mode in modes.items():
            found = kept(
                functools.partial(measure, row, mode, options),
                *(name, mode_name, batch_size, seconds, options.speakers),
                options.seconds,
                # A changed system is measured again.
                *(f"{counts.operations:.0f}", f"{counts.bytes_kept:.0f}"),
            )
            line = [row.title, mode_name, f"{batch_size} x {seconds:g} s"]
            line.append(f"{counts.operations / 1e9:.2f}")
            line.append(f"{counts.bytes_kept / 2**20:.1f} MiB")
            if found:
                share = counts.operations * found["crops"] / peaks[mode.precision]
                line += [f"{found['crops']:.1f}", f"{share:.1%}"]
                line.append("" if found["gib"] is None else f"{found['gib']:.1f} GiB")
            else:
                line += ["out of memory", "", ""]
            lines.append(line)
    heading = ["system", "mode", "crops in a step", "GFLOP a crop", "kept a crop"]
    peak_text = ", ".join(f"{p} {value / 1e12:.2f}" for p, value in peaks.items())
    return (
        f"{device}, torch {torch.__version__}; peak of a matrix product, TFLOP/s: "
        f"{peak_text}\n\n"
        + markdown([*heading, "crops/s", "share of peak", "highest memory"], lines)
    )


def device_name(device: str) -> str:
    """The name of the device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="benchmarks/throughput.py", description=__doc__.splitlines()[0]
    )
    on = "cuda" if torch.cuda.is_available() else "cpu"
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    add("--modes", nargs="+", choices=MODES, default=list(MODES)[:3], metavar="NAME")
    add("--device", default=on)
    add("--seconds", type=float, default=20.0, help="per row and mode")
    add("--speakers", type=int, default=7205, help="default: VoxCeleb1 and 2")
    add("--batch_size", type=int, help="instead of each recipe's own")
    add("--crop_seconds", type=float, help="instead of each recipe's own")
    options = parser.parse_args(argv)
    check_positive(options, "seconds", "speakers", "batch_size", "crop_seconds")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {options.device}: there is no GPU")
    return options


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/throughput.py", lambda: run(parse(argv)))


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, and shows all results."""
    show(table(options), FOLDER / "throughput.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
