"""What a recipe has to wire, checked before any work is lost."""

from collections.abc import Mapping

from torch import nn

from local_modules.errors import InputError

# What a Brain looks up during training.
OF_A_BRAIN = (
    "compute_features",
    "wav_augment",
    "feats_augment",
    "embedding_model",
    "averaged_model",
    "classifier",
    "loss",
    "margin_schedule",
    "lr_schedule",
    "epoch_counter",
    "history",
    "seed",
    "number_of_epochs",
    "train_time_limit_minutes",
    "max_bad_share",
)


def check_wiring(hparams_file: str, hparams: Mapping, run_opts: Mapping) -> None:
    """Checks that what a recipe wires can be trained, kept in checkpoints and written
    into a model folder.

    Arguments
    ---------
    hparams_file : str
        The recipe, for messages.
    hparams : mapping
        Its objects, loaded.
    run_opts : mapping
        SpeechBrain's run options.

    Raises
    ------
    InputError
        It can't; what to change is named.
    """
    for key in OF_A_BRAIN:
        hparams[key]  # raises an error that names a missing key
    for key in ("lr_schedule", "margin_schedule"):
        try:
            float(hparams[key](0.5))
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f"{hparams_file}: {key} has to give a number for the progress of the "
                "training, 0 to 1, which SpeechBrain's schedulers don't"
            ) from None
    for key in ("wav_augment", "feats_augment"):
        if not hasattr(hparams[key], "replicate_labels"):
            raise InputError(
                f"{hparams_file}: {key} has no replicate_labels: wire an augmentation "
                "of your own among those of SpeechBrain's Augmenter"
            )
    for key in ("compute_features", "mean_var_norm"):
        part = hparams[key]
        if _parameters(part) or getattr(part, "norm_type", "") == "global":
            raise InputError(
                f"{hparams_file}: {key} learns in training, but only what is in "
                "embedding_model is kept in checkpoints and in the model folder: make "
                "it the first part of that"
            )
    modules = hparams["modules"]
    for key in ("compute_features", "mean_var_norm", "embedding_model", "classifier"):
        if modules.get(key) is not hparams[key]:
            raise InputError(f"{hparams_file}: {key} has to be among the modules")
    trained = _parameters(*modules.values())
    kept = _parameters(*hparams["checkpointer"].recoverables.values())
    for key, part in {"loss": hparams["loss"], **modules}.items():
        if not _parameters(part) <= trained & kept:
            raise InputError(
                f"{hparams_file}: {key} has parameters, so it has to be among the "
                "modules, to be trained, and among the checkpointer's recoverables"
            )
    if not hasattr(hparams["compute_features"], "compute_STFT"):
        raise InputError(
            f"{hparams_file}: its compute_features has no compute_STFT with a "
            "hop_length, as SpeechBrain's features have"
        )
    for key in run_opts["compile_module_keys"] or ():
        if key not in modules:
            raise InputError(
                f"--compile_module_keys {key}: {hparams_file} has the modules "
                f"{', '.join(modules)}"
            )
    if "averaged_model" not in hparams["checkpointer"].recoverables:
        raise InputError(
            f"{hparams_file}: its checkpointer has no averaged_model among its "
            "recoverables; hparams/conformer.yaml shows where it belongs"
        )


def _parameters(*parts: object) -> set[int]:
    """Identities of the parameters to train."""
    modules = (part for part in parts if isinstance(part, nn.Module))
    return {id(p) for m in modules for p in m.parameters() if p.requires_grad}
