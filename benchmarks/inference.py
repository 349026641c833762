#!/usr/bin/env python3
"""Costs of using a trained model: latency, cold start, memory, files, voices.

    python benchmarks/inference.py [MODEL] [--seconds 1 3 10 60] [--threads 1 2]
                                   [--rounds 20] [--files 1000] [--voices 1000000]

MODEL is a folder written by train_speaker.py; if not given, the default recipe with
random weights, which is as fast. It is compared with its ONNX exports and with
SpeechBrain's ECAPA-TDNN and x-vector, with random weights. Systems take turns within a
round; times are medians. Speech is synthetic; the files are 3 seconds long.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import torch
from scipy.signal import resample_poly
from torch.nn.functional import normalize
from tqdm import tqdm, trange

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import markdown, show  # noqa: E402
from local_modules.config import load_hparams, resolved_text  # noqa: E402
from local_modules.errors import (  # noqa: E402
    LineParser,
    check_positive,
    exit_status,
)
from local_modules.evaluation.backend import Backend  # noqa: E402
from local_modules.evaluation.calibration import Calibration  # noqa: E402
from local_modules.inference.model_folder import write_model_folder  # noqa: E402
from local_modules.inference.nearest import NearestVectors  # noqa: E402
from local_modules.inference.onnx_export import int8_graph, onnx_graph  # noqa: E402
from local_modules.inference.speaker_model import SpeakerModel  # noqa: E402
from recipes.demo.espeak import SAMPLE_RATE, Espeak  # noqa: E402

FOLDER = Path("results/benchmarks/inference")
RATE = 16000
SPEAKERS = 1000  # of an untrained model: rows of its classifier and its cohort
OURS, ONNX, INT8 = "ours", "ours, ONNX", "ours, ONNX int8"
RIVALS = {
    "SpeechBrain's ECAPA-TDNN, 512 channels": ("ecapa_tdnn", {}),
    "SpeechBrain's ECAPA-TDNN, 1024 channels": ("ecapa_tdnn", {"channels": 1024}),
    "SpeechBrain's x-vector": ("xvector", {}),
}
TEXT = "The boat sailed along the coast until the evening, and nobody was in a hurry. "
VOICE = "language variant\nname drawn\npitch 90 120\n"
CLIP_SECONDS = 3
VECTOR = 192  # numbers per embedding that is searched
QUESTIONS = 20

# A program with only onnxruntime, as in docs/export.md.
ONNX_VERIFY = """
import sys, numpy, onnxruntime, soundfile
session = onnxruntime.InferenceSession(sys.argv[1])
def embed(path):
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    waveforms = samples.mean(axis=1)[None]
    lengths = numpy.array([waveforms.shape[1]])
    found = session.run(None, {"waveforms": waveforms, "lengths": lengths})[0][0]
    return found / numpy.linalg.norm(found)
print(embed(sys.argv[2]) @ embed(sys.argv[3]))
"""
TORCH_VERIFY = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
program = sys.argv[1] + "/speaker.py"
sys.argv[1:2] = ["verify"]
try:
    runpy.run_path(program, run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
# Not ru_maxrss, which a process inherits from its parent.
PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def random_model(recipe: str, overrides: dict, folder: Path) -> Path:
    """Writes a model folder of a recipe with random weights."""
    overrides = {**overrides, "n_speakers": SPEAKERS}
    recipe = str(ROOT / "hparams" / f"{recipe}.yaml")
    hparams = load_hparams(recipe, overrides)
    hparams["label_encoder"].update_from_iterable(f"{n:04d}" for n in range(SPEAKERS))
    emb_dim = hparams["emb_dim"]
    backend = Backend(
        torch.zeros(emb_dim),
        normalize(torch.randn(SPEAKERS, emb_dim), dim=-1),
        calibration=Calibration({"AS-norm": 1.0}, -3.0),
    )
    unknown = {"eer": 0.5, "eer_threshold": 0.0, "min_dcf": 1.0}
    unknown |= {"n_target": 0, "n_nontarget": 0}
    metrics = {"valid": unknown, "epochs": 0, "train_seconds": 0.0}
    metrics |= {"n_speakers": SPEAKERS, "n_parameters": 0}
    text = resolved_text(recipe, overrides)
    write_model_folder(folder, hparams, text, backend, metrics)
    return folder


def speech(seconds: float) -> np.ndarray:
    """A synthetic voice, float32, [time] at `RATE`."""
    with Espeak() as espeak:
        wave = espeak.speak(TEXT, VOICE, "gmw/en-US", 170)
    wave = resample_poly(wave, RATE, SAMPLE_RATE)
    return np.resize(wave, round(seconds * RATE)).astype(np.float32)


def times_in_turn(
    jobs: dict[str, Callable], rounds: int, title: str
) -> dict[str, list[float]]:
    """Seconds of each job in each round."""
    times = {name: [] for name in jobs}
    for _ in trange(rounds, desc=title, leave=False):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def embedders(
    folders: dict[str, Path], graphs: dict[str, Path], n_threads: int
) -> dict[str, Callable]:
    """Functions of a waveform, [time], by system."""
    torch.set_num_threads(n_threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    # Otherwise, its threads would keep spinning into another system's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    functions = {}
    for name, folder in folders.items():
        model = SpeakerModel(str(folder))
        functions[name] = lambda wave, m=model: m.embed([torch.from_numpy(wave)])
    for name, graph in graphs.items():
        session = onnxruntime.InferenceSession(graph, options)

        def run(wave, session=session):
            lengths = np.array([len(wave)])
            session.run(None, {"waveforms": wave[np.newaxis], "lengths": lengths})

        functions[name] = run
    return functions


def speed_table(folders: dict, graphs: dict, n_threads: int, options) -> str:
    """Milliseconds and real-time factors by system and length."""
    functions = embedders(folders, graphs, n_threads)
    rows = {name: [name] for name in functions}
    for seconds in options.seconds:
        wave = speech(seconds)
        jobs = {name: functools.partial(f, wave) for name, f in functions.items()}
        times_in_turn(jobs, 1, "warming up")
        found = times_in_turn(jobs, options.rounds, f"{seconds:g} s")
        for name, times in found.items():
            taken = np.median(times)
            rows[name].append(f"{1000 * taken:.1f} ms, {taken / seconds:.4f}")
    heading = f"{n_threads} thread" + "s" * (n_threads > 1)
    return markdown([heading, *(f"{s:g} s" for s in options.seconds)], rows.values())


def start_table(folders: dict, graphs: dict, clips: list[Path], rounds: int) -> str:
    """Seconds from nothing to a verdict, and the memory that it takes."""
    commands = {
        name: [TORCH_VERIFY, str(ROOT), *map(str, clips), "--model", str(folder)]
        for name, folder in folders.items()
    }
    for name, graph in graphs.items():
        commands[name] = [ONNX_VERIFY, str(graph), *map(str, clips)]
    mib = {}

    def verify(name):
        program, *arguments = commands[name]
        printed = _run([sys.executable, "-c", program + PEAK, *arguments])
        mib[name] = int(printed.split()[-1]) / 1024

    jobs = {name: functools.partial(verify, name) for name in commands}
    times = times_in_turn(jobs, rounds, "cold start")
    rows = [
        [name, f"{np.median(times[name]):.2f} s", f"{mib[name]:.0f} MiB"]
        for name in commands
    ]
    heading = f"`verify`, two clips of {CLIP_SECONDS} s, in a new process"
    return markdown([heading, "time", "highest memory"], rows)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def files_row(model: Path, n_files: int, folder: Path) -> list[str]:
    """`speaker.py embed` on `n_files` files."""
    recordings = folder / "recordings"
    recordings.mkdir()
    wave = speech(CLIP_SECONDS)
    for number in range(n_files):
        wave = np.roll(wave, 97)
        soundfile.write(recordings / f"{number}.wav", wave, RATE)
    start = time.perf_counter()
    _run(
        [sys.executable, str(ROOT / "speaker.py"), "embed", str(recordings)]
        + ["-o", str(folder / "vectors.npy"), "--model", str(model)]
    )
    seconds = time.perf_counter() - start
    what = f"`embed` on {n_files:,} files of {CLIP_SECONDS} s"
    return [what, f"{seconds:.1f} s", f"{n_files / seconds:.0f} files/s"]


def search_rows(n_voices: int) -> list[list[str]]:
    """Preparing the search of `n_voices` enrolled voices, and searching them."""
    rng = np.random.default_rng(0)
    voices = rng.standard_normal((n_voices, VECTOR), dtype=np.float32)
    voices /= np.linalg.norm(voices, axis=1, keepdims=True)
    questions = voices[rng.integers(n_voices, size=QUESTIONS)]
    questions += 0.05 * rng.standard_normal(questions.shape, dtype=np.float32)
    start = time.perf_counter()
    nearest = NearestVectors(voices)
    ready = time.perf_counter() - start
    taken = []
    for question in tqdm(questions, desc="search", leave=False):
        start = time.perf_counter()
        nearest(question, 5)
        taken.append(time.perf_counter() - start)
    return [
        [f"preparing the search of {n_voices:,} voices, once", f"{ready:.1f} s", ""],
        [f"the nearest 5 of {n_voices:,}", f"{1000 * np.median(taken):.1f} ms", ""],
    ]


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="benchmarks/inference.py", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="folder of a trained model")
    add("--seconds", type=float, nargs="+", default=[1, 3, 10, 60], help="of the clips")
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--rounds", type=int, default=20, help="of which the median is shown")
    add("--start_rounds", type=int, default=5, help="the same, of new processes")
    add("--files", type=int, default=1000)
    add("--voices", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    check_positive(options, "seconds", "threads", "rounds", "start_rounds")
    check_positive(options, "files", "voices")
    return options


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/inference.py", lambda: run(parse(argv)), stopped="")


def run(options: argparse.Namespace) -> None:
    """Measures and shows."""
    show("\n\n".join(measure(options)), FOLDER / "inference.md")


def measure(options: argparse.Namespace) -> list[str]:
    """All tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = options.model or random_model("conformer", {}, folder / "ours")
        folders = {OURS: Path(ours)}
        for number, (name, recipe) in enumerate(RIVALS.items()):
            folders[name] = random_model(*recipe, folder / f"{number}")
        graph = onnx_graph(SpeakerModel(str(ours)))
        graphs = {ONNX: folder / "model.onnx", INT8: folder / "model.int8.onnx"}
        graphs[ONNX].write_bytes(graph.SerializeToString())
        graphs[INT8].write_bytes(int8_graph(graph).SerializeToString())
        clips = [folder / "one.wav", folder / "two.wav"]
        for clip in clips:
            soundfile.write(clip, speech(CLIP_SECONDS), RATE)
        tables = [speed_table(folders, graphs, n, options) for n in options.threads]
        tables.append(start_table(folders, graphs, clips, options.start_rounds))
        many = [files_row(folders[OURS], options.files, folder)]
        many += search_rows(options.voices)
        tables.append(markdown(["many at a time", "", ""], many))
    return tables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
