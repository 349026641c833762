#!/usr/bin/env python3
"""Writes a trained model as one file that runs without PyTorch.

    python export.py MODEL --format onnx [--quantize int8] [--output FILE]

MODEL is a folder that train_speaker.py has written (results/.../model) or any other
speaker model that SpeechBrain loads. The graph takes `waveforms` [batch, time],
float32, and `lengths` [batch], int64, in samples, and gives `embeddings` [batch,
emb_dim]. It is compared with PyTorch before anything is written.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch

from local_modules.errors import InputError, LineParser, add_trust, exit_status
from local_modules.files import check_data_folder, check_writable, replacing, writing_to
from local_modules.inference.embedding_store import EMBEDDINGS, EmbeddingStore
from local_modules.inference.extraction import embed_list
from local_modules.inference.onnx_export import (
    OnnxModel,
    check_int8,
    check_parity,
    int8_graph,
    onnx_graph,
)
from local_modules.inference.speaker_model import SpeakerModel, kept_beside
from local_modules.metrics import equal_error_rate
from local_modules.scoring import score_trials, trial_rows
from local_modules.trials import read_trials
from local_modules.yaml_trees import load_plain

MANIFESTS = "manifests"  # beside the model, as training leaves them
TRIALS = "test_trials.txt"
GIVE_TRIALS = "give --trials LIST --data_folder DIR for the error rates"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="export.py",
        description=__doc__.splitlines()[0],
        epilog="example: python export.py results/conformer/1234/model --format onnx",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or name on the hub")
    add("--format", required=True, choices=["onnx"])
    add("--quantize", choices=["int8"], help="smaller; prints the change in EER")
    add("--output", metavar="FILE", help="default: MODEL.onnx or MODEL.int8.onnx")
    add_trust(parser)
    add("--trials", metavar="LIST", help="for --quantize; default: the model's own")
    add("--data_folder", metavar="DIR", help="root folder of the paths in LIST")
    options = parser.parse_args(argv)
    if (options.trials is None) != (options.data_folder is None):
        raise InputError("--trials and --data_folder: give both of them or neither")
    if options.trials is not None and options.quantize is None:
        raise InputError("--trials: is for --quantize int8, which compares error rates")
    if options.data_folder is not None:
        check_data_folder(options.data_folder)
    if options.output is None:
        folder = Path(options.model).resolve()
        if not folder.is_dir():
            raise InputError(f"{options.model}: is not a folder; give --output FILE")
        # Not in the folder: a new training replaces it.
        options.output = f"{folder}{'.int8' if options.quantize else ''}.onnx"
    options.output = Path(options.output)
    if options.output.is_dir() or not options.output.parent.is_dir():
        raise InputError(
            f"--output {options.output}: has to be a file in a folder that exists"
        )
    check_writable(options.output.parent)
    return options


def trials_to_compare(options: argparse.Namespace) -> tuple[Path, Path] | None:
    """The trial list to compare on and the root folder of its paths: those given, or
    the test split of the model's training; None if that no longer exists."""
    if options.trials is not None:
        return Path(options.trials), Path(options.data_folder)
    run = Path(options.model).resolve().parent
    values = values_of(run / "hyperparams.yaml")
    trials = run / MANIFESTS / TRIALS
    if not trials.is_file():
        trials = Path(values.get("manifest_folder", ""), TRIALS)
    if not trials.is_file() or "data_folder" not in values:
        print(f"{run}: has no test trials; {GIVE_TRIALS}")
        return None
    folder = Path(values["data_folder"])
    if not folder.is_dir():
        print(f"{folder}: the recordings are not there; {GIVE_TRIALS}")
        return None
    return trials, folder


def values_of(recipe: Path) -> dict[str, str]:
    """The plain text values of a recipe; none if it does not exist. References were
    resolved when it was written, and must not be resolved here: HyperPyYAML would call
    what the file names, and it may come with an untrusted model."""
    if not recipe.is_file():
        return {}
    text = recipe.read_text(encoding="utf-8", errors="replace")
    tree = load_plain(str(recipe), text)
    return {key: value for key, value in tree.items() if isinstance(value, str)}


def error_rates(
    models: Mapping[str, SpeakerModel | OnnxModel],
    trial_list: Path,
    folder: Path,
    store: Path,
) -> tuple[dict[str, float], int]:
    """Equal error rates of the cosine by model, on the trials whose recordings all
    models can embed, and the number of these; embeddings are kept in `store`."""
    trials = read_trials(trial_list, is_name=lambda name: (folder / name).is_file())
    paths = list(dict.fromkeys([*trials.enrol, *trials.test]))
    found, failures = {}, {}
    with EmbeddingStore(store) as kept:
        for name, model in models.items():
            # In int8, an embedding depends slightly on the others in its batch.
            alone = {"batch_seconds": 0.0} if isinstance(model, OnnxModel) else {}
            listed = paths, trial_list, folder
            found[name], failed = embed_list(model, *listed, kept, **alone)
            failures = failed | failures  # the first model's reason
    counted = f"{len(failures)} of {len(paths)} recordings can't be embedded"
    usable = [path for path in paths if path not in failures]
    if failures:
        path, reason = next(iter(failures.items()))
        print(f"{folder / path}: {reason}; {counted}")
    scored = trial_rows(usable, trials)[0]
    if len(set(trials.labels[scored])) < 2:
        raise InputError(
            f"{counted}, so target or non-target trials are missing; {GIVE_TRIALS} of "
            "others"
        )
    rates = {}
    for name, embedded in found.items():
        vectors = {p: torch.tensor(embedded[p].vector) for p in usable}
        rates[name], _ = equal_error_rate(*score_trials(vectors, trials))
    return rates, len(scored)


def quantize(
    options: argparse.Namespace, graph: onnx.ModelProto, model: SpeakerModel
) -> onnx.ModelProto:
    """The graph in int8; prints what that costs in accuracy."""
    quantized = int8_graph(graph)
    cosine = check_int8(quantized, model)
    print(f"int8: cosine of {cosine:.4f} or more with the original, on noise")
    found = trials_to_compare(options)
    if found is not None:
        models = {"before": model, "after": OnnxModel(quantized, model)}
        store = kept_beside(options.model, EMBEDDINGS)
        rates, n_trials = error_rates(models, *found, store)
        print(
            f"EER on {n_trials} trials: {100 * rates['before']:.2f} % before, "
            f"{100 * rates['after']:.2f} % in int8"
        )
    return quantized


def export(options: argparse.Namespace) -> None:
    """Makes the graph, checks it, and writes it."""
    model = SpeakerModel(options.model, trust=options.trust)
    print(f"Exporting {options.model}", flush=True)
    graph = onnx_graph(model)
    difference = check_parity(graph, model)
    print(f"Parity with PyTorch: no value differs by more than {difference:.1e}")
    if options.quantize:
        graph = quantize(options, graph, model)
    with writing_to(options.output), replacing(options.output, binary=True) as file:
        file.write(graph.SerializeToString())
    print(f"{options.output}: {options.output.stat().st_size / 2**20:.1f} MiB")


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a graph that differs from the model, 2 for wrong usage,
        130 for Ctrl-C.
    """
    nothing = "Nothing was written."
    return exit_status("export.py", lambda: export(parse(argv)), stopped=nothing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
