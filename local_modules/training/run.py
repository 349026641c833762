"""The folder of a run: begun or continued, and finished."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import speechbrain as sb
from filelock import FileLock, Timeout
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    main_process_only,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from local_modules import config
from local_modules.corpus import (
    check_same_corpus,
    note_corpus,
    noted_corpus,
    prepare_corpus,
    read_corpus,
)
from local_modules.distributed import rank_and_count
from local_modules.errors import InputError
from local_modules.evaluation.backend import Backend
from local_modules.files import check_writable, replacing, writing_to
from local_modules.inference.model_folder import write_model_folder
from local_modules.training.history import RunHistory, best_row
from local_modules.training.report import draw_plots, last_screen

logger = get_logger(__name__)

LABELS = "label_encoder.txt"
OPTIONS = "options.json"
# What a Brain looks up when it comes to it.
OF_A_BRAIN = (
    *("compute_features", "wav_augment", "feats_augment", "embedding_model"),
    *("averaged_model", "classifier", "loss", "angular_margin", "margin_schedule"),
    *("lr_schedule", "epoch_counter", "history", "seed", "number_of_epochs"),
    *("train_time_limit_minutes", "max_bad_share"),
)
LOCK = ".lock"
SECONDS_TO_END = 120.0  # until a file server frees the lock of a machine that is gone


@contextlib.contextmanager
def claimed(hparams_file: str, overrides: Mapping) -> Iterator[None]:
    """Keeps a run's folder for this process and its ranks: a second one would take the
    checkpoint that the first is writing for what a kill has left.

    Raises
    ------
    InputError
        Another has it, or it can't be written.
    """
    if not if_main_process():
        yield
        return
    config.check_overrides(hparams_file, overrides)
    folder = Path(config.plain_values(hparams_file, overrides)["output_folder"])
    check_writable(folder)
    lock = FileLock(folder / LOCK)
    with writing_to(lock.lock_file):
        try:
            with contextlib.suppress(Timeout):
                lock.acquire(blocking=False)
            if not lock.is_locked:
                logger.warning(
                    "%s: another process is training there, or was: waiting for %d s",
                    folder,
                    SECONDS_TO_END,
                )
                lock.acquire(timeout=SECONDS_TO_END)
        except Timeout:
            raise InputError(
                f"{folder}: another process is training there; wait for it, or choose "
                "another --output_folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def begin_run(
    hparams_file: str, run_opts: RunOptions, overrides: dict, save_env_desc: bool
) -> tuple[dict, str, dict, dict]:
    """Prepares the corpus and the run's folder, in which an earlier start has to have
    been the same run.

    Arguments
    ---------
    hparams_file : str
        A HyperPyYAML file of `hparams/`.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Values for its top-level keys; gets `n_speakers`.
    save_env_desc : bool
        Whether the environment is described in the folder, which takes a second.

    Returns
    -------
    hparams : dict
        The loaded hyperparameters.
    hparams_text : str
        The YAML they come from, references resolved.
    splits, trials : dict
        What `read_corpus` returns.
    """
    config.check_overrides(hparams_file, overrides)
    settings = config.plain_values(hparams_file, overrides)
    config.check_ranges(settings)
    if settings["batch_size"] * rank_and_count()[1] == 1:
        raise InputError("--batch_size 1: has to be 2 or more, for batch norm")
    if "n_speakers" in overrides:
        raise InputError("--n_speakers: is counted; leave it out")
    for key in ("frozen_blocks", "distillation"):
        if settings.get(key) and not settings["pretrained"]:
            raise InputError(f"--{key} {settings[key]}: is for a --pretrained model")
    continues = any(Path(settings["save_folder"]).glob("CKPT*"))
    if continues:  # before another corpus takes the place of its manifests
        config.check_continues(settings["output_folder"], hparams_file, overrides)
        _check_same_options(run_opts, settings)
    begun_with = noted_corpus(settings["save_folder"]) if continues else None
    run_on_main(prepare_corpus, [settings, begun_with])
    splits, trials = read_corpus(settings["manifest_folder"])
    n_people = len({row.speaker for row in splits["train"]})
    overrides["n_speakers"] = n_people * len(settings["speaker_speeds"])
    hparams_text = config.resolved_text(hparams_file, overrides)
    if continues:
        check_same_corpus(settings["save_folder"], settings["manifest_folder"])
    else:
        # Nothing is learnt yet, so an earlier start's numbering of speakers is void.
        (Path(settings["save_folder"]) / LABELS).unlink(missing_ok=True)
    ddp_barrier()  # the first rank writes what the others have just read

    hparams = config.load_hparams(hparams_file, overrides)
    for key in OF_A_BRAIN:
        hparams[key]  # what the recipe lacks is told
    if "averaged_model" not in hparams["checkpointer"].recoverables:
        raise InputError(
            f"{hparams_file}: its checkpointer has no averaged_model among its "
            "recoverables; hparams/conformer.yaml shows where it belongs"
        )
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        save_env_desc=save_env_desc,
    )
    if if_main_process():
        # SpeechBrain's own way would leave half of it to a kill.
        with replacing(Path(hparams["output_folder"], "hyperparams.yaml")) as file:
            file.write(hparams_text)
        if not continues:
            note_corpus(hparams["save_folder"], hparams["manifest_folder"])
            with replacing(Path(hparams["save_folder"], OPTIONS)) as file:
                json.dump(_lasting(run_opts, settings), file, indent=2)
    return hparams, hparams_text, splits, trials


def _lasting(run_opts: RunOptions, settings: Mapping) -> dict:
    """The run options that a run keeps to its end, but for keys of its recipe, which
    are compared as such. How many steps it has is free, as its epochs and minutes are;
    of how many batches a step is, its Brain compares."""
    names = {"precision", "remove_vector_weight_decay"} - settings.keys()
    return {name: run_opts[name] for name in sorted(names)}


def _check_same_options(run_opts: RunOptions, settings: Mapping) -> None:
    save_folder = settings["save_folder"]
    path = Path(save_folder) / OPTIONS
    if not path.is_file():  # begun before they were noted
        return
    noted = json.loads(path.read_text(encoding="utf-8"))
    for name, value in _lasting(run_opts, settings).items():
        if noted.get(name, value) != value:
            raise InputError(
                f"{Path(save_folder).parent}: holds a run with --{name} {noted[name]}, "
                f"not {value}; continue it with its own options, or choose another "
                "--output_folder"
            )


@main_process_only
def finish_run(
    hparams: dict,
    hparams_text: str,
    history: RunHistory,
    scores: dict,
    backend: Backend,
    drift: dict | None,
) -> dict:
    """Writes the pictures, the model folder and, last, the metrics; says where they
    are.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters, with the best epoch's weights.
    hparams_text : str
        The YAML they come from, references resolved.
    history : RunHistory
        All epochs of the run.
    scores : dict
        What `SpeakerBrain.verify` returned for `valid` and `test`.
    backend : Backend
        What scores beyond the cosine need.
    drift : dict | None
        What `adaptation.drift` returned, if the run began with a trained model.

    Returns
    -------
    dict
        What `metrics.json` holds.
    """
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
