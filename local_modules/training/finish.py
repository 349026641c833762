"""The end of a run: tests its best epoch and writes its results."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import main_process_only, run_on_main

from local_modules.class_parallel import split_classifiers
from local_modules.errors import InputError
from local_modules.evaluation.backend import Backend, fit_backend
from local_modules.files import replacing
from local_modules.inference.model_folder import write_model_folder
from local_modules.manifest import Utterance
from local_modules.training import adaptation
from local_modules.training.brain import RepeatableBrain
from local_modules.training.history import RunHistory, best_row
from local_modules.training.report import draw_plots, last_screen


def finish_run(
    brain: RepeatableBrain,
    hparams: dict,
    hparams_text: str,
    datasets: Mapping[str, DynamicItemDataset],
    splits: Mapping[str, Sequence[Utterance]],
    old_model: torch.nn.Module | None,
    options: Mapping,
) -> dict:
    """Tests the best epoch, fits the scoring backend, and writes the plots, the model
    folder and, last, the metrics.

    Arguments
    ---------
    brain : SpeakerBrain
        After its training.
    hparams : dict
        The loaded hyperparameters.
    hparams_text : str
        The YAML they come from, references resolved.
    datasets : mapping of str to DynamicItemDataset
        `valid`, `test` and `cohort`.
    splits : mapping of str to sequence of Utterance
        The utterances of the manifests.
    old_model : torch.nn.Module | None
        What the run began with, to measure the drift from.
    options : mapping
        Options of the data loaders.

    Returns
    -------
    dict
        What `metrics.json` holds.

    Raises
    ------
    InputError
        With --test_only, no epoch has been trained.
    """
    if brain.test_only:
        if not brain.checkpointer.find_checkpoint(min_key="eer"):
            raise InputError(
                f"--test_only: {hparams['save_folder']} has no checkpoint of a whole "
                "epoch"
            )
        brain.checkpointer.recover_if_possible()  # the latest has all epochs
    # Evaluation loads the best checkpoint, and with it the history up to there.
    history = copy.deepcopy(hparams["history"])
    scores, embeddings = {}, {}
    for split in ("valid", "test", "cohort"):
        brain.evaluate(datasets[split], min_key="eer", test_loader_kwargs=options)
        embeddings[split] = brain.embeddings
        if split in brain.trials:
            scores[split] = brain.verify(split)
    backend = run_on_main(
        fit_backend,
        [
            embeddings["valid"],
            {row.path: row.duration for row in splits["valid"]},
            {row.path: row.speaker for row in splits["valid"]},
            brain.trials["valid"],
            embeddings["cohort"],
            {row.id: row.speaker for row in splits["train"]},
        ],
    )
    drift = None
    if old_model is not None:
        new, brain.checkpointer = embeddings["valid"], None  # to recover nothing
        brain.eval_model = old_model
        brain.evaluate(datasets["valid"], test_loader_kwargs=options)
        drift = run_on_main(
            adaptation.drift, [brain.embeddings, new, brain.trials["valid"]]
        )
    for classifier in split_classifiers(brain.modules):
        classifier.gather_rows()
    return _write(hparams, hparams_text, history, scores, backend, drift)


@main_process_only
def _write(
    hparams: dict,
    hparams_text: str,
    history: RunHistory,
    scores: Mapping,
    backend: Backend,
    drift: Mapping | None,
) -> dict:
    """Writes a run's results, prints the summary, and returns the metrics."""
    folder = Path(hparams["output_folder"])
    metrics = {split: result[0] for split, result in scores.items()}
    metrics |= summary(hparams, history)
    if drift is not None:
        metrics["drift"] = drift
    draw_plots(folder / "plots", history, scores)
    final = {**hparams, "embedding_model": hparams["averaged_model"].module}
    write_model_folder(folder / "model", final, hparams_text, backend, metrics)
    with replacing(folder / "metrics.json") as file:
        json.dump(metrics, file, indent=2)
    print(last_screen(folder, metrics))
    return metrics


def summary(hparams: dict, history: RunHistory) -> dict:
    """The part of `metrics.json` that isn't about trials."""
    best = best_row(history.epochs)
    return {
        "train": {"loss": best["train_loss"], "accuracy": best["train_accuracy"]},
        "best_epoch": best["epoch"],
        "epochs": len(history.epochs),
        "train_seconds": history.epochs[-1]["seconds"],
        "n_speakers": hparams["n_speakers"] // len(hparams["speaker_speeds"]),
        "n_parameters": sum(p.numel() for p in hparams["embedding_model"].parameters()),
    }
