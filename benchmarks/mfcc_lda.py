#!/usr/bin/env python3
"""A baseline without a network: MFCC statistics, LDA and the cosine.

    python benchmarks/mfcc_lda.py benchmarks/mfcc_lda.yaml [--key value ...]

Computes means and deviations of each utterance's MFCC, and the linear discriminants of
the training speakers; their number is chosen on `valid`. Writes what a training writes:
metrics.json, and a model/ that evaluate.py and SpeechBrain load.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from local_modules import config  # noqa: E402
from local_modules.audio import UtteranceReader  # noqa: E402
from local_modules.command_line import parse_command_line  # noqa: E402
from local_modules.corpus import prepare_corpus, read_corpus  # noqa: E402
from local_modules.errors import exit_status  # noqa: E402
from local_modules.evaluation.backend import (  # noqa: E402
    COHORT_UTTERANCES,
    fit_backend,
)
from local_modules.files import replacing  # noqa: E402
from local_modules.inference.model_folder import write_model_folder  # noqa: E402
from local_modules.manifest import Utterance, spread_utterances  # noqa: E402
from local_modules.metrics import verification_rates  # noqa: E402
from local_modules.scoring import score_trials, speaker_means  # noqa: E402


@torch.no_grad()
def read_statistics(
    hparams: Mapping, utterances: Sequence[Utterance], split: str
) -> dict[str, torch.Tensor]:
    """MFCC statistics of each utterance that can be decoded, [4 * n_mfcc], by path or,
    in `train`, where a file may hold several, by ID."""
    reader = UtteranceReader(hparams["sample_rate"])
    encoder, found = hparams["embedding_model"].encoder, {}
    for row in tqdm(utterances, desc=f"MFCC of {split}", unit="utterance"):
        path = str(Path(hparams["data_folder"]) / row.path)
        wav = reader(row.id, path, row.start, row.stop)
        if wav is not None:
            feats = hparams["compute_features"](wav.unsqueeze(0))
            name = row.id if split == "train" else row.path
            found[name] = encoder.statistics(feats)[0]
    return found


def discriminants(
    statistics: torch.Tensor, speakers: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear discriminants, the best first: the projection that whitens the covariance
    within speakers, onto the axes that separate the speakers most.

    Arguments
    ---------
    statistics : torch.Tensor
        [utterances, features].
    speakers : sequence of str
        The speaker of each utterance.

    Returns
    -------
    weight, bias : torch.Tensor
        Of a linear layer, [discriminants, features] and [discriminants], float32.
    """
    lda = LinearDiscriminantAnalysis().fit(statistics.double().numpy(), speakers)
    weight = lda.scalings_.T
    bias = -weight @ lda.xbar_
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (weight, bias))


def embed(statistics: Mapping[str, torch.Tensor], weight, bias) -> dict:
    """Embeddings by path, [discriminants]."""
    vectors = torch.stack(list(statistics.values())) @ weight.T + bias
    return dict(zip(statistics, vectors, strict=True))


def fit(hparams_file: str, overrides: dict) -> dict:
    """Fits, chooses, tests and writes.

    Arguments
    ---------
    hparams_file : str
        The YAML.
    overrides : dict
        Values for its top-level keys.

    Returns
    -------
    dict
        What `metrics.json` holds.
    """
    start = time.monotonic()
    config.check_overrides(hparams_file, overrides)
    settings = config.plain_values(hparams_file, {"emb_dim": 0, **overrides})
    prepare_corpus(settings)
    splits, trials = read_corpus(settings["manifest_folder"])
    speaker_of = {row.id: row.speaker for row in splits["train"]}
    names = sorted(set(speaker_of.values()))
    overrides = {**overrides, "n_speakers": len(names), "emb_dim": 1}
    hparams = config.load_hparams(hparams_file, overrides)
    statistics = {
        split: read_statistics(hparams, rows, split) for split, rows in splits.items()
    }
    speakers = [speaker_of[name] for name in statistics["train"]]
    weight, bias = discriminants(
        torch.stack(list(statistics["train"].values())), speakers
    )
    rates = {
        n: verification_rates(
            *score_trials(
                embed(statistics["valid"], weight[:n], bias[:n]), trials["valid"]
            )
        )
        for n in sorted({min(n, len(bias)) for n in settings["emb_dims"]})
    }
    overrides["emb_dim"] = n = min(rates, key=lambda n: rates[n]["eer"])

    hparams = config.load_hparams(hparams_file, overrides)
    projection = hparams["embedding_model"].encoder.projection
    projection.load_state_dict({"weight": weight[:n], "bias": bias[:n]})
    embeddings = {
        split: embed(rows, weight[:n], bias[:n]) for split, rows in statistics.items()
    }
    hparams["label_encoder"].update_from_iterable(names)
    number_of = {name: number for number, name in enumerate(names)}
    numbers = torch.tensor([number_of[speaker] for speaker in speakers])
    training = torch.stack(list(embeddings["train"].values()))
    # A training utterance is classified by the nearest speaker.
    hparams["classifier"].weight.data = speaker_means(training, numbers)
    guesses = hparams["classifier"](training.unsqueeze(1)).argmax(dim=-1).squeeze(1)
    seconds = time.monotonic() - start
    in_training = {name: speaker_of[name] for name in embeddings["train"]}
    cohort = spread_utterances(in_training, COHORT_UTTERANCES)
    metrics = {
        "valid": rates[n],
        "test": verification_rates(*score_trials(embeddings["test"], trials["test"])),
        "train": {"accuracy": (guesses == numbers).float().mean().item()},
        "best_epoch": 1,
        "epochs": 1,
        "train_seconds": seconds,
        "n_speakers": len(names),
        "n_parameters": sum(p.numel() for p in projection.parameters()),
    }
    backend = fit_backend(
        embeddings["valid"],
        {row.path: row.duration for row in splits["valid"]},
        {row.path: row.speaker for row in splits["valid"]},
        trials["valid"],
        {name: embeddings["train"][name] for name in cohort},
        speaker_of,
    )
    folder = Path(hparams["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    text = config.resolved_text(hparams_file, overrides)
    write_model_folder(folder / "model", hparams, text, backend, metrics)
    with replacing(folder / "metrics.json") as file:
        json.dump(metrics, file, indent=2)
    print(
        f"{n} discriminants of {len(bias)}: valid EER "
        f"{100 * metrics['valid']['eer']:.2f} %, test EER "
        f"{100 * metrics['test']['eer']:.2f} %\nmodel  {folder / 'model'}"
    )
    return metrics


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""

    def run():
        hparams_file, _, overrides = parse_command_line(argv)
        fit(hparams_file, overrides)

    return exit_status("benchmarks/mfcc_lda.py", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
