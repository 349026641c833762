"""The folder of a run: locked, and begun or continued."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from local_modules import config
from local_modules.audio import check_speeds, speaker_at
from local_modules.corpus import (
    check_same_corpus,
    note_corpus,
    noted_corpus,
    prepare_corpus,
    read_corpus,
)
from local_modules.distributed import rank_and_count
from local_modules.errors import InputError
from local_modules.files import check_writable, replacing, writing_to
from local_modules.training.adaptation import check_pretrained
from local_modules.training.continuing import (
    check_continues,
    check_same_options,
    has_begun,
    note_options,
)
from local_modules.training.wiring import check_wiring

logger = get_logger(__name__)

LABELS = "label_encoder.txt"
CODE = Path(__file__).resolve().parents[2]
LOCK = ".lock"
SECONDS_TO_END = 120.0  # until a file server frees the lock of a machine that is gone


@contextlib.contextmanager
def claimed(hparams_file: str, overrides: Mapping) -> Iterator[None]:
    """Locks a run's folder for this process and its ranks: a second process would take
    a checkpoint that the first is writing for the remains of a kill.

    Raises
    ------
    InputError
        Another process has it, it can't be written, or it is the folder of the code.
    """
    if not if_main_process():
        yield
        return
    config.check_overrides(hparams_file, overrides)
    values = config.plain_values(hparams_file, overrides)
    folder = Path(values["output_folder"])
    if folder.resolve() == CODE:  # SpeechBrain copies the program into the run's folder
        raise InputError(
            f"--output_folder {folder}: is where the programs are; choose another, "
            "such as results/mine"
        )
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
        check_writable(values["save_folder"])
        yield
    finally:
        lock.release()


def begin_run(
    hparams_file: str, run_opts: RunOptions, overrides: dict
) -> tuple[dict, str, dict, dict]:
    """Prepares the corpus and the run's folder, which may hold only an earlier start of
    the same run.

    Arguments
    ---------
    hparams_file : str
        A HyperPyYAML file of `hparams/`.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Values for its top-level keys; `n_speakers` is added.

    Returns
    -------
    hparams : dict
        The loaded hyperparameters.
    hparams_text : str
        The YAML they come from, references resolved.
    splits, trials : dict
        What `read_corpus` returns.

    Raises
    ------
    InputError
        A key, a value or a path is wrong, the recipe lacks a part, or the folder holds
        another run.
    RunError
        Too many recordings can't be read.
    """
    config.check_overrides(hparams_file, overrides)
    settings = config.plain_values(hparams_file, overrides)
    config.check_ranges(settings)
    check_speeds(settings["speaker_speeds"])
    if settings["batch_size"] * rank_and_count()[1] == 1:
        raise InputError("--batch_size 1: has to be 2 or more, for batch norm")
    if "n_speakers" in overrides:
        raise InputError("--n_speakers: is counted in the corpus; leave it out")
    for key in ("frozen_blocks", "distillation"):
        if settings.get(key) and not settings["pretrained"]:
            raise InputError(f"--{key} {settings[key]}: needs a --pretrained model")
    for key in ("noise_folder", "rir_folder", "speed_perturb"):
        if settings.get(key) and not settings.get("augment_prob", 1):
            logger.warning("--%s is not used: augment_prob is 0", key)
    if settings["pretrained"]:
        text = config.resolved_text(hparams_file, {**overrides, "n_speakers": 0})
        check_pretrained(settings["pretrained"], text)
    continues = has_begun(settings["save_folder"])
    if continues:  # before another corpus replaces its manifests
        check_continues(settings["output_folder"], hparams_file, overrides)
        check_same_options(run_opts, settings)
    begun_with = noted_corpus(settings["save_folder"]) if continues else None
    run_on_main(prepare_corpus, [settings, begun_with])
    splits, trials = read_corpus(settings["manifest_folder"])
    people = {row.speaker for row in splits["train"]}
    speeds = settings["speaker_speeds"]
    overrides["n_speakers"] = len(people) * len(speeds)
    classes = {speaker_at(one, speed) for one in people for speed in speeds}
    if len(classes) < overrides["n_speakers"]:
        raise InputError(
            f"--speaker_speeds {speeds}: two training speakers' names differ only by @ "
            "and a speed, as an additional speaker's does: rename one"
        )
    hparams_text = config.resolved_text(hparams_file, overrides)
    if continues:
        check_same_corpus(settings["save_folder"], settings["manifest_folder"])
    else:
        # Without a checkpoint, an earlier start's numbering of speakers is void.
        (Path(settings["save_folder"]) / LABELS).unlink(missing_ok=True)
    ddp_barrier()  # the first rank writes what the others have just read

    hparams = config.load_hparams(hparams_file, overrides)
    check_wiring(hparams_file, hparams, run_opts)
    if if_main_process():
        Path(hparams["output_folder"]).mkdir(parents=True, exist_ok=True)
        # Atomically, unlike SpeechBrain, where a kill may leave half a file.
        with replacing(Path(hparams["output_folder"], "hyperparams.yaml")) as file:
            file.write(hparams_text)
        if not continues:
            note_corpus(hparams["save_folder"], hparams["manifest_folder"])
            note_options(run_opts, settings)
    return hparams, hparams_text, splits, trials
