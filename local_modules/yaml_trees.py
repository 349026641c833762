"""HyperPyYAML files as written: read, shown and compared, with no objects made."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from local_modules.errors import InputError, one_line

WIRED = ("!new:", "!name:", "!apply:")  # what an object's tag begins with


def read_plain(hparams_file: str) -> Mapping:
    """Reads a file with `load_plain`.

    Raises
    ------
    InputError
        It can't be read, or is not a YAML mapping.
    """
    try:
        text = Path(hparams_file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{hparams_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{hparams_file}: is not UTF-8 text") from None
    return load_plain(hparams_file, text)


def load_plain(hparams_file: str, text: str) -> Mapping:
    """A HyperPyYAML text as written: no references resolved, no objects made."""
    try:
        tree = YAML().load(text)
    except YAMLError as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"{hparams_file}: is not a mapping of keys to values")
    return tree


def is_wired(value: object) -> bool:
    """Whether a value of a YAML file is an object, or a mapping to some.

    Example
    -------
    >>> tree = load_plain("a.yaml", "a: 1\\nb: !new:torch.nn.ReLU")
    >>> is_wired(tree["a"]), is_wired(tree["b"])
    (False, True)
    """
    if _tag(value).startswith(WIRED):
        return True
    return isinstance(value, Mapping) and any(map(_tag, value.values()))


def as_lines(tree: Mapping) -> dict[str, str]:
    """Each top-level key of a YAML file in one line, to compare and to show: values as
    JSON, without comments and anchors; an object is its tag with its arguments.

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


def differences(
    before: object, now: object, name: str, ignored: Collection[str] = ()
) -> Iterator[tuple[str, object, object]]:
    """Where two values of YAML files differ, down to the innermost.

    Arguments
    ---------
    before, now : object
        Plain values, or objects as `load_plain` gives them.
    name : str
        Their name.
    ignored : collection of str
        Keys of a mapping or arguments of an object that may differ.

    Yields
    ------
    name, before, now
        Of each difference; of objects of different classes, their tags.

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
    # A tag without arguments, such as a class by name, is a scalar.
    elif (values := (_plain(before), _plain(now)))[0] != values[1]:
        yield name, *values


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        plain = {str(key): _plain(part) for key, part in value.items()}
    elif isinstance(value, list):
        plain = [_plain(part) for part in value]
    else:
        plain = getattr(value, "value", value)
    tag = _tag(value)
    return {tag: plain} if tag else plain


def _tag(value: object) -> str:
    return getattr(getattr(value, "tag", None), "value", None) or ""
