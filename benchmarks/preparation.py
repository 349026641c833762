#!/usr/bin/env python3
"""Time and memory that a large corpus takes from its files to its manifests.

    python benchmarks/preparation.py [--entries 50000 200000 1200000]

Makes a tree with VoxCeleb's layout in a temporary folder (`TMPDIR`), of links to a few
recordings of 0.6 s: 200 per speaker, ten per video. For each size, a separate process
prepares it, and again, when nothing is left to do. The tree is fresh, so it is in the
page cache; a cold disk takes longer.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import markdown, show  # noqa: E402
from local_modules.errors import (  # noqa: E402
    LineParser,
    check_positive,
    exit_status,
)

FOLDER = Path("results/benchmarks/preparation")
N_LINKS = 10_000  # per recording: file systems have limits
PREPARE = """
import json, sys, time

from benchmarks.measuring import peak_mib
from recipes.voxceleb.prepare import prepare

before = peak_mib()
result = {}
for name in ("first", "again"):
    start, cpu = time.perf_counter(), time.process_time()
    prepare(sys.argv[1], sys.argv[2], parts=2)
    result[name] = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps(result | {"mib": peak_mib() - before}))
"""


def make_tree(root: Path, n_entries: int) -> None:
    """Links named like VoxCeleb2, and two speakers to test on."""
    samples = np.zeros(9600, dtype=np.int16)
    videos = ("aaaaaaaaaaa", "bbbbbbbbbbb")
    for speaker in ("id10270", "id10271"):
        for video in videos:
            folder = root / "vox1" / "test" / "wav" / speaker / video
            folder.mkdir(parents=True)
            soundfile.write(folder / "00001.wav", samples, 16000)
    for entry in tqdm(range(n_entries), desc="Making the tree", unit="file"):
        if entry % N_LINKS == 0:
            original = root / f".original{entry}.wav"
            soundfile.write(original, samples, 16000)
        video, utterance = divmod(entry, 10)
        folder = f"{root}/vox2/dev/aac/id{12 + entry // 200:05d}/v{video:010d}"
        if utterance == 0:
            os.makedirs(folder)
        os.link(original, f"{folder}/{utterance:05d}.wav")
    lines = (
        f"1 id10270/{videos[0]}/00001.wav id10270/{videos[1]}/00001.wav\n"
        f"0 id10270/{videos[0]}/00001.wav id10271/{videos[1]}/00001.wav\n"
    )
    (root / "veri_test2.txt").write_text(lines)


def measure(n_entries: int) -> list[str]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder, "data"), n_entries)
        command = [sys.executable, "-c", PREPARE, f"{folder}/data", f"{folder}/save"]
        done = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    cells = [f"{n_entries:,}"]
    for name in ("first", "again"):
        seconds, cpu = found[name]
        cells.append(f"{seconds:.1f} s ({cpu:.1f} s of CPU)")
    return [*cells, f"{found['mib']:.0f} MiB"]


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/preparation.py", lambda: run(argv), stopped="")


def run(argv: list[str]) -> None:
    """Measures and shows."""
    parser = LineParser(
        prog="benchmarks/preparation.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--entries", type=int, nargs="+", default=[50_000, 200_000, 1_200_000]
    )
    options = parser.parse_args(argv)
    check_positive(options, "entries")
    heading = ["files", "prepared", "again", "memory, beyond Python and torch"]
    rows = [measure(n_entries) for n_entries in sorted(options.entries)]
    show(markdown(heading, rows), FOLDER / "preparation.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
