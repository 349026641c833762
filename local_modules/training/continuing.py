"""Checks that a run's folder holds the same run, so that a run is never continued with
other settings."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from speechbrain.utils.run_opts import RunOptions

from local_modules.config import resolved_text
from local_modules.distributed import rank_and_count
from local_modules.errors import InputError
from local_modules.files import replacing, sha256
from local_modules.training.adaptation import WEIGHTS
from local_modules.yaml_trees import differences, load_plain, read_plain

OPTIONS = "options.json"
BUDGET_KEYS = {"number_of_epochs", "train_time_limit_minutes"}
# SpeechBrain's run options that affect the result, besides the budget.
RUN_OPTIONS = {
    "precision",
    "eval_precision",
    "grad_accumulation_factor",
    "remove_vector_weight_decay",
}
PROCESSES = "a number of processes of"
TRIALS = "--trials of SHA-256"
# What may change when a run is continued; the schedules adapt.
FREE_KEYS = BUDGET_KEYS | {
    "num_workers",
    "valid_batch_size",
    "cache_gib",
    "data_folder",  # `check_same_corpus` compares the manifests made from it
    "output_folder",  # may have been renamed, or be written in another way
    "manifest_folder",  # `check_same_corpus` compares what it holds
    "trials",  # `check_same_options` compares its content
    "shard_cache",
    "skip_prep",
    "max_bad_share",
    "nonfinite_patience",
    "epoch_counter",
    "checkpointer",  # holds the epoch counter; its other parts have keys of their own
}


def has_begun(save_folder: str) -> bool:
    """Whether a run has written a checkpoint, even an incomplete one."""
    return any(Path(save_folder).glob("CKPT*"))


def check_continues(
    output_folder: str,
    hparams_file: str,
    overrides: Mapping,
    free_keys: Collection[str] = FREE_KEYS,
) -> None:
    """Checks that the run in a folder was started with the same settings.

    Arguments
    ---------
    output_folder : str
        The run's folder.
    hparams_file : str
        The YAML file.
    overrides : mapping
        Values by key; `n_speakers`, known only once the corpus is prepared, is taken
        from the folder.
    free_keys : collection of str
        Keys that may differ.

    Raises
    ------
    InputError
        Another key differs.
    """
    earlier_tree = read_plain(str(Path(output_folder) / "hyperparams.yaml"))
    n_speakers = earlier_tree.get("n_speakers", 0)
    text = resolved_text(hparams_file, {**overrides, "n_speakers": n_speakers})
    present_tree = load_plain(hparams_file, text)
    # Keys precede the objects made from them: the first difference is the cause.
    for key in dict.fromkeys((*earlier_tree, *present_tree)):
        values = earlier_tree.get(key), present_tree.get(key)
        # Shards may have moved; without them, the order of utterances is another one.
        if key == "shards" and None not in values:
            continue
        if key == "save_folder" and _is_same_place(earlier_tree, present_tree):
            continue
        # The content of a list is compared elsewhere, if there is one.
        is_missing = key == "trials" and values[1] and not Path(values[1]).is_file()
        if key in free_keys and not is_missing:
            continue
        for where, before, now in differences(*values, key):
            raise InputError(
                f"{output_folder}: holds a run with {where} {before}, not {now}; "
                "continue it with its own settings, move it away, or choose another "
                "--output_folder"
            )


def _is_same_place(*trees: Mapping) -> bool:
    """Whether checkpoints are where they were, or where they were in a run's folder
    that has been renamed."""
    places = [tree["save_folder"] for tree in trees]
    within = [os.path.relpath(t["save_folder"], t["output_folder"]) for t in trees]
    return len({*map(os.path.abspath, places)}) == 1 or len({*within}) == 1


def note_options(run_opts: RunOptions, settings: Mapping) -> None:
    """Notes, in a run's `save_folder`, what `check_same_options` compares."""
    with replacing(Path(settings["save_folder"], OPTIONS)) as file:
        json.dump(_lasting(run_opts, settings), file, indent=2)


def check_same_options(run_opts: RunOptions, settings: Mapping) -> None:
    """Checks that a run was started with the same run options, number of processes,
    trial list and pretrained weights.

    Arguments
    ---------
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    settings : mapping
        Plain values of the recipe by key.

    Raises
    ------
    InputError
        One differs.
    """
    save_folder = settings["save_folder"]
    path = Path(save_folder) / OPTIONS
    if not path.is_file():  # from a version that did not note them
        return
    noted = json.loads(path.read_text(encoding="utf-8"))
    lasting = _lasting(run_opts, settings)
    if run_opts["test_only"]:  # no training step follows
        for name in ("grad_accumulation_factor", PROCESSES):
            lasting.pop(name, None)
    for name, value in lasting.items():
        if noted.get(name, value) != value:
            called = f"--{name}" if name in run_opts else name
            raise InputError(
                f"{Path(save_folder).parent}: holds a run with {called} {noted[name]}, "
                f"not {value}; continue it with its own options, or choose another "
                "--output_folder"
            )


def _lasting(run_opts: RunOptions, settings: Mapping) -> dict:
    """What must not change during a run, besides the keys of its recipe. The number of
    steps may, like epochs and minutes."""
    names = RUN_OPTIONS - settings.keys()
    if run_opts["test_only"]:  # which compares no epochs
        names.discard("eval_precision")
    lasting = {name: run_opts[name] for name in sorted(names)}
    lasting[PROCESSES] = rank_and_count()[1]
    trials = settings.get("trials")
    if trials is None or Path(trials).is_file():  # else reported if it is needed
        lasting[TRIALS] = trials and sha256(trials)[:12]
    if pretrained := settings.get("pretrained"):
        weights = Path(pretrained, WEIGHTS)
        if weights.is_file():  # else reported when they are loaded
            lasting[f"{weights} of SHA-256"] = sha256(weights)[:12]
    return lasting
