"""From a command line to a HyperPyYAML file, SpeechBrain's run options and overrides.

Every user error here is an `InputError` of one line.
"""

import contextlib
import dataclasses
import datetime
import io
import json
import re
from collections.abc import Sequence

import speechbrain as sb
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.run_opts import HELP_TEXTS

from local_modules.errors import InputError
from local_modules.yaml_trees import read_plain

EQUALS = "\ua78a"  # in place of "=", which SpeechBrain's parser turns into a space


def parse_command_line(argv: Sequence[str]) -> tuple[str, sb.core.RunOptions, dict]:
    """Splits a command line into the YAML file, SpeechBrain's run options and the
    overrides of the YAML's keys.

    Arguments
    ---------
    argv : sequence of str
        Arguments without the program's name.

    Returns
    -------
    hparams_file : str
        The YAML file.
    run_opts : speechbrain.utils.run_opts.RunOptions
        Options such as `--device`.
    overrides : dict
        Values by key, including run options that are also keys of the YAML.

    Raises
    ------
    InputError
        A run option has a wrong value, or an argument is not a `--key value`.

    Example
    -------
    >>> parse_command_line(["a.yaml", "--device", "cpu", "--lr", "1e-4"])[2]
    {'lr': 0.0001}
    """
    _check_whole_names(argv)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            hparams_file, run_opts, overrides = sb.parse_arguments(
                [_without_equals(word) for word in argv]
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        last_line = complaint.getvalue().strip().splitlines()[-1]
        complaint = last_line.partition(" error: ")[2].replace(EQUALS, "=")
        raise InputError(complaint) from None
    hparams_file, overrides = (
        text.replace(EQUALS, "=") for text in (hparams_file, overrides)
    )
    texts = {name: text for name, text in run_opts.items() if isinstance(text, str)}
    run_opts = dataclasses.replace(
        run_opts, **{name: text.replace(EQUALS, "=") for name, text in texts.items()}
    )
    _check_run_options(run_opts)
    keys = re.findall(r"^(\w+):", overrides, re.MULTILINE)
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--{key}: is given {keys.count(key)} times")
    # Such as --trials "$LIST" with an unset variable; YAML would take it for null.
    for key in re.findall(r"^(\w+): *$", overrides, re.MULTILINE):
        raise InputError(f"--{key}: has no value; for none, give null")
    # A folder or a file may be called 2024 or 1e3.
    overrides = re.sub(
        r"^(\w+_folder|pretrained|shards|shard_cache|trials): (?!null$)(.+)$",
        lambda found: f"{found[1]}: {json.dumps(found[2])}",
        overrides,
        flags=re.MULTILINE,
    )
    try:
        overrides = YAML(typ="safe", pure=True).load(overrides) if overrides else {}
    except (YAMLError, ValueError):  # the latter for 2024-13-45
        overrides = None
    if not isinstance(overrides, dict):
        raise InputError(f"{' '.join(argv)}: expected FILE.yaml --key value ...")
    for key, value in overrides.items():
        if isinstance(value, datetime.date):
            overrides[key] = str(value)
    with contextlib.suppress(InputError):  # an unreadable file is reported later
        known = read_plain(hparams_file).keys()
        overrides |= {
            key: run_opts[key] for key in known if key in run_opts.overridden_args
        }
    return hparams_file, run_opts, overrides


def _without_equals(word: str) -> str:
    """A word of a command line with any "=" in its value replaced."""
    name = word[: word.find("=") + 1] if word.startswith("--") else ""
    return name + word[len(name) :].replace("=", EQUALS)


def _check_whole_names(argv: Sequence[str]) -> None:
    """Checks that no run option is abbreviated: SpeechBrain's parser would accept it,
    but its Brain would not know that it was given."""
    names = [*HELP_TEXTS, "jit_module_keys", "compile_module_keys"]
    for word in argv:
        given = word.partition("=")[0].removeprefix("--")
        if not word.startswith("--") or not given or given in names:
            continue
        for name in names:
            if name.startswith(given):
                raise InputError(f"--{given}: has to be written out, as --{name}")


def _check_run_options(run_opts: sb.core.RunOptions) -> None:
    """Checks run options that SpeechBrain accepts unchecked."""
    steps = run_opts["optimizer_step_limit"]  # as it was typed
    if steps is not None and not (steps.isdecimal() and int(steps) > 0):
        raise InputError(f"--optimizer_step_limit {steps}: has to be above 0")
    factor = run_opts["grad_accumulation_factor"]
    if factor < 1:
        raise InputError(f"--grad_accumulation_factor {factor}: has to be above 0")
    if run_opts["bfloat16_mix_prec"]:
        raise InputError("--bfloat16_mix_prec: is --precision bf16 now")
    if run_opts["auto_mix_prec"]:
        raise InputError("--auto_mix_prec: is --precision fp16 now")
    if run_opts["ckpt_interval_minutes"] > 0 and run_opts["ckpt_interval_steps"] > 0:
        raise InputError(
            "--ckpt_interval_steps: is for a run without --ckpt_interval_minutes"
        )
    for option in ("compile", "jit"):
        if run_opts[f"{option}_module_keys"] and not run_opts[option]:
            raise InputError(f"--{option}_module_keys: needs --{option} too")
    if run_opts["data_parallel_backend"]:
        raise InputError("--data_parallel_backend: use torchrun for several GPUs")
    name = run_opts["device"] or sb.utils.distributed.infer_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"--device {name}: has to be one of torch's, such as cpu or cuda:0"
        ) from None
    n_gpus = torch.cuda.device_count()
    if run_opts["device"] and device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise InputError(f"--device {name}: torch sees {n_gpus or 'no'} GPU here")
    for option in ("precision", "eval_precision"):
        if device.type == "cpu" and run_opts[option] == "fp16":
            raise InputError(f"--{option} fp16: is for GPUs; on a CPU, use bf16")
