"""From a command line and a HyperPyYAML file to hyperparameters.

Every mistake of a person here is an `InputError` of one line.
"""

import contextlib
import datetime
import difflib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from local_modules.errors import InputError, one_line

BUDGET_KEYS = {"number_of_epochs", "train_time_limit_minutes"}
# What may change when a run is continued; the schedules follow.
FREE_KEYS = BUDGET_KEYS | {
    "num_workers",
    "valid_batch_size",
    "cache_gib",
    "shard_cache",
    "skip_prep",
    "max_bad_share",
    "epoch_counter",
    "checkpointer",  # holds the epoch counter; its other parts have keys of their own
}

# Kinds of values in a YAML file, and what may take their place; a bool is an int too.
KINDS = (
    (bool, bool, "True or False"),
    (int, int, "an integer"),
    (float, (int, float), "a number"),
    (list, list, "a list, as in [1.0,0.9]"),
)

WIRED = ("!new:", "!name:", "!apply:")  # what an object's tag begins with

# The least that a number may be, and whether it may be just that.
LEAST = {
    "number_of_epochs": (0, False),
    "epochs_per_pass": (0, False),
    "train_time_limit_minutes": (0, False),
    "batch_size": (0, False),
    "valid_batch_size": (0, False),
    "crop_seconds": (0.1, True),  # what an encoder needs for a frame of its own
    "lr": (0, True),
    "weight_decay": (0, True),
    "num_workers": (0, True),
    "seed": (0, True),
}


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
        Values by key; run options that are keys of the YAML too are among them.

    Raises
    ------
    InputError
        A wrong value of a run option, or something that is no `--key value`.

    Example
    -------
    >>> parse_command_line(["a.yaml", "--device", "cpu", "--lr", "1e-4"])[2]
    {'lr': 0.0001}
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            hparams_file, run_opts, overrides = sb.parse_arguments(list(argv))
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        last_line = complaint.getvalue().strip().splitlines()[-1]
        raise InputError(last_line.partition(" error: ")[2]) from None
    _check_run_options(run_opts)
    keys = re.findall(r"^(\w+):", overrides, re.MULTILINE)
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--{key}: is given {keys.count(key)} times")
    # A folder or a file may be called 2024 or 1e3.
    overrides = re.sub(
        r"^(\w+_folder|pretrained|shards|shard_cache|trials): (?!null$)(.+)$",
        lambda found: f"{found[1]}: {json.dumps(found[2])}",
        overrides,
        flags=re.MULTILINE,
    )
    try:
        overrides = YAML(typ="safe", pure=True).load(overrides) if overrides else {}
    except (YAMLError, ValueError):  # the latter is 2024-13-45's
        overrides = None
    if not isinstance(overrides, dict):
        raise InputError(f"{' '.join(argv)}: expected FILE.yaml --key value ...")
    for key, value in overrides.items():
        if isinstance(value, datetime.date):
            overrides[key] = str(value)
    with contextlib.suppress(InputError):  # a file that can't be read is named later
        known = load_plain(hparams_file, _read(hparams_file)).keys()
        overrides |= {
            key: run_opts[key] for key in known if key in run_opts.overridden_args
        }
    return hparams_file, run_opts, overrides


def _check_run_options(run_opts: sb.core.RunOptions) -> None:
    """Checks what SpeechBrain takes as it is."""
    steps = run_opts["optimizer_step_limit"]  # as it was typed
    if steps is not None and not (steps.isdecimal() and int(steps) > 0):
        raise InputError(f"--optimizer_step_limit {steps}: has to be above 0")
    factor = run_opts["grad_accumulation_factor"]
    if factor < 1:
        raise InputError(f"--grad_accumulation_factor {factor}: has to be above 0")
    if run_opts["bfloat16_mix_prec"]:
        raise InputError("--bfloat16_mix_prec: is --precision bf16 now")
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
    if device.type == "cpu" and run_opts["auto_mix_prec"]:
        raise InputError("--auto_mix_prec: is for GPUs; --precision bf16 isn't")
    for option in ("precision", "eval_precision"):
        if device.type == "cpu" and run_opts[option] == "fp16":
            raise InputError(f"--{option} fp16: is for GPUs; --{option} bf16 isn't")


def check_overrides(hparams_file: str, overrides: Mapping, prefix: str = "--") -> None:
    """Checks that every override names a top-level key of the YAML file, and is a
    number where the file has one.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : mapping
        Values by key.
    prefix : str
        What stands before the key in a message: where the override comes from.

    Raises
    ------
    InputError
        The file can't be read or is no YAML mapping; a key does not exist or is an
        object, or its value is of another kind.
    """
    known = load_plain(hparams_file, _read(hparams_file))
    check_keys(overrides, known, prefix, hparams_file)
    for key, value in overrides.items():
        if _is_wired(known[key]):
            raise InputError(
                f"{prefix}{key}: is no value but what {hparams_file} is wired of; "
                "change it in a copy of that file"
            )
        for kind, allowed, words in KINDS:
            if isinstance(known[key], kind):
                is_bool = isinstance(value, bool)
                if not isinstance(value, allowed) or is_bool != (kind is bool):
                    raise InputError(f"{prefix}{key} {value}: has to be {words}")
                break


def _is_wired(value: object) -> bool:
    """Whether a value of a YAML file is an object, or a mapping to some."""
    if _tag(value).startswith(WIRED):
        return True
    return isinstance(value, Mapping) and any(map(_tag, value.values()))


def _tag(value: object) -> str:
    return getattr(getattr(value, "tag", None), "value", None) or ""


def check_ranges(values: Mapping) -> None:
    """Checks that numbers that have a least value, or null where it may be, are in
    their ranges.

    Raises
    ------
    InputError
        One isn't.

    Example
    -------
    >>> check_ranges({"batch_size": 8, "train_time_limit_minutes": None})
    """
    for key, (least, may_be_least) in LEAST.items():
        value = values.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = is_number and (value >= least if may_be_least else value > least)
        if value is not None and not fits:
            words = f"{least} or more" if may_be_least else f"a number above {least}"
            raise InputError(f"--{key} {value}: has to be {words}")


def check_keys(
    given: Iterable[str], known: Iterable[str], prefix: str, owner: str
) -> None:
    """Checks that all keys given are known ones.

    Raises
    ------
    InputError
        One is not; the nearest are named.

    Example
    -------
    >>> check_keys(["lr"], ["lr", "seed"], "--", "a.yaml")
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"the nearest are {', '.join(near)}" if near else "nor one like it"
            raise InputError(f"{prefix}{key}: {owner} has no such key; {hint}")


class Keys(dict):
    """The top-level keys of a YAML file. What it lacks is a person's to know.

    Arguments
    ---------
    hparams_file : str
        The file.
    values : mapping
        Values by key.

    Example
    -------
    >>> keys = Keys("a.yaml", {"lr": 0.1})
    >>> keys["lr"], keys.get("seed")
    (0.1, None)
    >>> keys["seed"]
    Traceback (most recent call last):
    ...
    local_modules.errors.InputError: a.yaml: gives no seed; hparams/conformer.yaml does
    """

    def __init__(self, hparams_file: str, values: Mapping):
        super().__init__(values)
        self.hparams_file = hparams_file

    def __missing__(self, key):
        raise InputError(
            f"{self.hparams_file}: gives no {key}; hparams/conformer.yaml does"
        )


def plain_values(hparams_file: str, overrides: Mapping) -> Keys:
    """The top-level keys of a YAML file with overrides and references resolved, but
    no object made.

    Returns
    -------
    Keys
        Values by key; what is an object, or holds one, is left out.
    """
    values = Keys(hparams_file, {})
    for key, value in _resolved(hparams_file, overrides).items():
        is_plain = getattr(value, "tag", None) is None or value.tag.value is None
        # The parser's own kinds of number and list become Python's; objects within
        # a list or mapping can't.
        with contextlib.suppress(TypeError):
            if is_plain:
                values[key] = json.loads(json.dumps(value))
    return values


def texts(hparams_file: str, overrides: Mapping) -> dict[str, str]:
    """The top-level keys of a YAML file with overrides and references resolved.

    Returns
    -------
    dict
        What `as_lines` makes of them.
    """
    return as_lines(_resolved(hparams_file, overrides))


def _resolved(hparams_file: str, overrides: Mapping) -> Mapping:
    # Whatever the number of speakers is, no plain value depends on it.
    text = resolved_text(hparams_file, {"n_speakers": 0, **overrides})
    return load_plain(hparams_file, text)


def resolved_text(hparams_file: str, overrides: Mapping) -> str:
    """The YAML file with overrides and references resolved, as text."""
    try:
        with open(hparams_file, encoding="utf-8") as file:
            return resolve_references(file, dict(overrides)).getvalue()
    except (YAMLError, ValueError, KeyError) as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from None


def load_hparams(hparams_file: str, overrides: Mapping) -> Keys:
    """Loads a YAML file and makes the objects in it.

    Raises
    ------
    InputError
        An object can't be made of the values given.
    """
    try:
        with open(hparams_file, encoding="utf-8") as file:
            return Keys(hparams_file, load_hyperpyyaml(file, dict(overrides)))
    except Exception as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from error


def check_continues(
    output_folder: str,
    hparams_file: str,
    overrides: Mapping,
    free_keys: Collection[str] = FREE_KEYS,
) -> None:
    """Checks that what is in a run's folder was started with the same settings, so
    that a run is never continued as another.

    Arguments
    ---------
    output_folder : str
        The run's folder.
    hparams_file : str
        The YAML file.
    overrides : mapping
        Values by key; `n_speakers`, which only the prepared corpus can tell, is taken
        from the folder.
    free_keys : collection of str
        Those that may differ.

    Raises
    ------
    InputError
        A key differs that may not.
    """
    earlier_file = str(Path(output_folder) / "hyperparams.yaml")
    earlier_tree = load_plain(earlier_file, _read(earlier_file))
    n_speakers = earlier_tree.get("n_speakers", 0)
    text = resolved_text(hparams_file, {**overrides, "n_speakers": n_speakers})
    present_tree = load_plain(hparams_file, text)
    # Keys stand before the objects made of them: the first is the cause.
    for key in dict.fromkeys((*earlier_tree, *present_tree)):
        if key in free_keys:
            continue
        values = earlier_tree.get(key), present_tree.get(key)
        for where, before, now in differences(*values, key):
            raise InputError(
                f"{output_folder}: holds a run with {where} {before}, not {now}; "
                "continue it with its own settings, move it away, or choose another "
                "--output_folder"
            )


def differences(
    before: object, now: object, name: str, ignored: Collection[str] = ()
) -> Iterator[tuple[str, object, object]]:
    """Where two values of YAML files differ, down to the innermost.

    Arguments
    ---------
    before, now : object
        Plain values, or objects as `load_plain` gives them.
    name : str
        What they are called.
    ignored : collection of str
        Keys of a mapping or arguments of an object that may differ.

    Yields
    ------
    name, before, now
        Of what differs; of objects of different classes, their tags.

    Example
    -------
    >>> before, now = ({"pooling": {"heads": n, "dim": [n, 8]}} for n in (4, 2))
    >>> list(differences(before, now, "model", ignored={"heads"}))
    [('model.pooling.dim[0]', 4, 2)]
    """
    if _tag(before) != _tag(now):
        yield name, _tag(before) or before, _tag(now) or now
    elif isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            if key not in ignored:
                values = before.get(key, "nothing"), now.get(key, "nothing")
                yield from differences(*values, f"{name}.{key}", ignored)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, values in enumerate(zip(before, now, strict=True)):
            yield from differences(*values, f"{name}[{place}]", ignored)
    # What has a tag but no arguments, such as a class by its name, is a scalar.
    elif (values := (_plain(before), _plain(now)))[0] != values[1]:
        yield name, *values


def _read(hparams_file: str) -> str:
    try:
        return Path(hparams_file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{hparams_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{hparams_file}: is no UTF-8 text") from None


def load_plain(hparams_file: str, text: str) -> Mapping:
    """A HyperPyYAML text as it stands: no reference resolved, no object made."""
    try:
        tree = YAML().load(text)
    except YAMLError as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"{hparams_file}: is no mapping of keys to values")
    return tree


def as_lines(tree: Mapping) -> dict[str, str]:
    """What a YAML file says of each of its top-level keys, to compare and to show:
    values as JSON, without remarks and anchors; an object is its tag with its
    arguments.

    Example
    -------
    >>> tree = load_plain("a.yaml", "a: 0.10  # all\\nb: !new:torch.nn.Linear [2, 3]")
    >>> as_lines(tree)
    {'a': '0.1', 'b': '{"!new:torch.nn.Linear": [2, 3]}'}
    """
    return {
        key: json.dumps(_plain(value), ensure_ascii=False, default=str)
        for key, value in tree.items()
    }


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        plain = {str(key): _plain(part) for key, part in value.items()}
    elif isinstance(value, list):
        plain = [_plain(part) for part in value]
    else:
        plain = getattr(value, "value", value)
    tag = _tag(value)
    return {tag: plain} if tag else plain
