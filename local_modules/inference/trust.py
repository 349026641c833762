"""Checks an untrusted model folder before any object in it is made.

HyperPyYAML calls whatever a file names, and so does a pickle. Here the YAML is read as
a tree of nodes, without making objects, and may only hold plain values, plain
references and the parts in `ALLOWED`. SpeechBrain then gets a copy in which the weights
are rewritten from their tensors, so that nothing can change between the check and the
loading, and none of the folder's pickles reaches an unrestricted unpickler.

This keeps code from running. It does not limit memory or time: a model may be as large
as its YAML says.
"""

import ast
import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import NamedTuple

import ruamel.yaml
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml.error import YAMLError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.fetching import LocalStrategy, fetch
from speechbrain.utils.run_opts import RunOptions

from local_modules.errors import InputError, one_line

HPARAMS = "hyperparams.yaml"
ENCODER = "speechbrain.dataio.encoder.CategoricalEncoder"
PRETRAINER = "speechbrain.utils.parameter_transfer.Pretrainer"
FOLDER_PRETRAINER = "local_modules.inference.pretrainer.FolderPretrainer"
# The arguments that each may be given.
PRETRAINERS = {
    PRETRAINER: ("loadables", "paths"),
    FOLDER_PRETRAINER: ("loadables", "files", "custom_hooks"),
}
HOOKS = {
    "!name:safetensors.torch.load_model",
    "!name:local_modules.inference.pretrainer.load_statistics",
}
# Classes by full name, never a package: speechbrain.utils alone runs shell commands,
# downloads and unpickles. None of these opens a file or calls its arguments,
# except parts of this list; the pretrainer's arguments are checked below.
ALLOWED = {
    ENCODER,
    *PRETRAINERS,
    "speechbrain.dataio.preprocess.AudioNormalizer",
    "speechbrain.lobes.features.Fbank",
    "speechbrain.lobes.features.MFCC",
    "speechbrain.lobes.models.ECAPA_TDNN.Classifier",
    "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN",
    "speechbrain.lobes.models.ResNet.Classifier",
    "speechbrain.lobes.models.ResNet.ResNet",
    "speechbrain.lobes.models.Xvector.Classifier",
    "speechbrain.lobes.models.Xvector.Xvector",
    "speechbrain.processing.features.InputNormalization",
    "torch.nn.ELU",
    "torch.nn.GELU",
    "torch.nn.LeakyReLU",
    "torch.nn.ReLU",
    "torch.nn.SiLU",
    "torch.nn.Tanh",
    "local_modules.class_parallel.SplitClassifier",
    "local_modules.conformer.ConformerEncoder",
    "local_modules.embedder.BottleneckProjection",
    "local_modules.embedder.FrameStatistics",
    "local_modules.embedder.LinearProjection",
    "local_modules.embedder.SpeakerEmbedder",
    "local_modules.embedder.UnpaddedEmbedder",
    "local_modules.normalization.NoNorm",
    "local_modules.normalization.SentenceMeanNorm",
    "local_modules.pooling.AttentiveStatisticsPooling",
    "local_modules.pooling.MeanPooling",
    "local_modules.pooling.StatisticsPooling",
    "local_modules.subsampling.ConvSubsampling",
    "local_modules.subsampling.StackSubsampling",
}
PLAIN = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null")
}
OBJECT = re.compile(r"!(?:new|name):(.*)")
# HyperPyYAML passes text in parentheses, tagged !tuple or not, to a YAML loader that
# makes any object.
TUPLE = re.compile(r"\([\d\s.,eE+-]*\)")
KEY = r"<\w+(?:\[\w+\])*>"  # no dot: HyperPyYAML would fetch an attribute
REFERENCE = re.compile(KEY, re.ASCII)
# Around references, only what a path needs: HyperPyYAML evaluates what looks like
# arithmetic, and powers and repeated strings grow without bound.
PATH_REFERENCE = re.compile(rf"(?:{KEY}|[\w./-])*", re.ASCII)
PATH_PART = re.compile(r"[\w.:/@ -]{0,200}", re.ASCII)
NAME = re.compile(r"\w+", re.ASCII)
MAX_BYTES = 256 * 1024
MAX_NODES = 20_000  # with all aliases expanded
WAY_OUT = "--trust loads a folder that you have made or audited yourself"
# Environment variables that torch.load reads at each call.
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ANY_PICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Loadable(NamedTuple):
    """A part with parameters to load: its class, its name and its file."""

    kind: str
    name: str
    filename: str


def checked_copy(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Checks a model and copies what SpeechBrain's `from_hparams` needs of it, under
    the names that it looks for first.

    The files in the pretrainer's paths are taken from `source`, whatever folder or hub
    these paths name.

    Arguments
    ---------
    source : str or os.PathLike
        A folder, or any other source of `speechbrain.utils.fetching.fetch`; all its
        files are fetched before any object is made of them.
    folder : str or os.PathLike
        The destination: an empty private folder. Pass it as `source` and `savedir`.

    Raises
    ------
    InputError
        The model holds more than plain parameters of known parts. The message names
        the file, the line if there is one, and what was found.
    """
    folder = Path(folder)
    path = folder / _fetched(HPARAMS, source, folder, HPARAMS)
    for part in _check_hparams(path, f"{source}/{HPARAMS}"):
        filename = part.filename
        # SpeechBrain takes a file of this name for it before any other.
        copy = _fetched(filename, source, folder, f"{part.name}.ckpt")
        if part.kind == ENCODER:
            _check_labels(copy, f"{source}/{filename}")
        elif filename.endswith(".safetensors"):
            _rewrite_tensors(copy, f"{source}/{filename}")
        else:
            _rewrite_weights(copy, f"{source}/{filename}")


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Within the context, in which a checked copy is loaded, torch makes only tensors
    from files, whatever the environment says about pickles."""
    names = TENSORS_ONLY, ANY_PICKLE
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[TENSORS_ONLY]
        os.environ.update(before)


def check_is_model(source: str | os.PathLike) -> None:
    """Checks that `source` can be a model, before it is looked for on a hub.

    Raises
    ------
    InputError
        It is neither a folder nor a name on a hub; or it is the folder of a run.
    """
    path = Path(source)
    if (path / "model" / HPARAMS).is_file():
        raise InputError(f"{source}: is a run; its model is {path / 'model'}")
    if path.is_dir():
        return
    is_name = str(source).count("/") == 1 and not path.is_absolute()
    if not is_name or path.parent.is_dir():
        raise InputError(
            f"{source}: is not a speaker model: there is no such folder, and models on "
            "a hub are called OWNER/NAME"
        )


def _fetched(filename, source, folder, save_filename) -> Path:
    if Path(source).is_dir():
        path, root = Path(source, filename), Path(source).resolve()
        if not path.resolve().is_relative_to(root):
            raise InputError(
                f"{path}: is a link out of the folder, to {path.resolve()}; only "
                f"files in it are allowed; {WAY_OUT}"
            )
        if not path.is_file():
            raise InputError(
                f"{source}: is not a speaker model: has no file {filename}"
            )
    return fetch(filename, source, folder, save_filename, LocalStrategy.COPY)


def _check_hparams(path: Path, name: str) -> list[Loadable]:
    """Checks a YAML file, called `name` in messages; returns what is to be loaded."""
    if path.stat().st_size > MAX_BYTES:
        _refuse(name, f"more than {MAX_BYTES} bytes", "shorter files")
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip("\ufeff").startswith("%"):
                # It could redefine the tags below.
                _refuse(f"{name}:{number}", f"the directive {line!r}", "plain YAML")
        written = ruamel.yaml.YAML().compose(io.StringIO(text))
        _Tree(written, name).check()
        # What is left is safe to resolve. The result is checked again, as read by the
        # loader that will make the objects: it may see tuples and tags where the first
        # did not, and references are resolved.
        resolved = resolve_references(text).getvalue()
        root = ruamel.yaml.Loader(resolved).get_single_node()
        tree = _Tree(root, name, is_resolved=True)
        tree.check()
        return tree.loadables()
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or error
        raise InputError(f"{where}: is not valid YAML: {one_line(problem)}") from None
    except RecursionError:
        _refuse(name, "values nested too deep, or within themselves", "plain ones")
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{name}: {one_line(error)}") from None


class _Tree:
    """The nodes of a YAML file, called `name` in messages, before or after references
    are resolved; after that, line numbers differ from those of the file."""

    def __init__(self, root, name: str, is_resolved: bool = False):
        self._root = root
        self._name = name
        self._is_resolved = is_resolved
        self._sizes: dict[int, int | None] = {}
        self._hooks: set[int] = set()  # nodes that may name a function

    def check(self) -> None:
        if not isinstance(self._root, ruamel.yaml.MappingNode):
            raise InputError(f"{self._name}: is not a mapping of keys to values")
        self._check_node(self._root)
        for key, _ in self._root.value:
            if key.value in RunOptions().as_dict():
                found = f"the run option {key.value!r}"
                self._refuse(key, found, "what describes the model")

    def loadables(self) -> list[Loadable]:
        """The parts with parameters to load."""
        pretrainer = dict(self._items(self._root)).get("pretrainer")
        if (
            pretrainer is None
            or pretrainer.tag.removeprefix("!new:") not in PRETRAINERS
        ):
            _refuse(self._name, "no pretrainer", f"pretrainer: !new:{PRETRAINER}")
        arguments = dict(self._items(pretrainer))
        in_folder = pretrainer.tag == f"!new:{FOLDER_PRETRAINER}"
        paths = dict(self._items(arguments.get("files" if in_folder else "paths")))
        found = []
        for name, node in self._items(arguments["loadables"]):
            kind = node.tag.removeprefix("!new:")
            if not NAME.fullmatch(name) or kind == node.tag or kind in PRETRAINERS:
                self._refuse(node, f"the loadable {name!r}", "parts under plain names")
            path = paths[name].value if name in paths else f"{name}.ckpt"
            found.append(Loadable(kind, name, PurePosixPath(path).name))
        return found

    def _check_node(self, node) -> int:
        """Checks a node and all below it; returns their number."""
        size = self._sizes.get(id(node), 0)
        if size is None:
            self._refuse(node, "a value within itself", "plain ones")
        if size:
            return size
        self._sizes[id(node)] = None
        self._check_tag(node)
        if isinstance(node, ruamel.yaml.MappingNode):
            keys = set()
            for key, _ in node.value:
                self._check_key(key, keys)
                keys.add(key.value)
            children = [value for _, value in node.value]
        elif isinstance(node, ruamel.yaml.SequenceNode):
            children = node.value
        else:
            children = []
            self._check_scalar(node)
        size = 1 + sum(self._check_node(child) for child in children)
        if size > MAX_NODES:
            found = f"aliases that stand for more than {MAX_NODES} values"
            self._refuse(node, found, "fewer")
        self._sizes[id(node)] = size
        return size

    def _check_tag(self, node) -> None:
        if node.tag in HOOKS and id(node) in self._hooks:
            return
        match = OBJECT.fullmatch(node.tag)
        is_scalar = isinstance(node, ruamel.yaml.ScalarNode)
        if match:
            if match[1] not in ALLOWED:
                allowed = "parts of speaker models, listed in inference/trust.py"
                self._refuse(node, node.tag, allowed)
            if is_scalar and node.value:
                self._refuse(node, f"{node.tag} {node.value}", "a mapping or a list")
            if match[1] in PRETRAINERS:
                self._check_pretrainer(node, PRETRAINERS[match[1]])
        elif node.tag == "!ref" and is_scalar and not self._is_resolved:
            self._check_reference(node)
        elif node.tag not in PLAIN and not (node.tag == "!tuple" and is_scalar):
            allowed = "plain values, !ref, !new: and !name:"
            self._refuse(node, _short_tag(node.tag), allowed)

    def _check_key(self, key, earlier: set[str]) -> None:
        is_scalar = isinstance(key, ruamel.yaml.ScalarNode)
        shown = key.value if is_scalar else "a list or mapping"
        if key.tag != "tag:yaml.org,2002:str" or key.value == "<<":
            found = f"the key {shown!r} of kind {_short_tag(key.tag)}"
            self._refuse(key, found, "plain words")
        if key.value in earlier:
            self._refuse(key, f"the key {shown!r} twice", "each key once")

    def _check_scalar(self, node) -> None:
        value = node.value.strip()
        looks_so = value.startswith("(") and value.endswith(")")
        if (looks_so or node.tag == "!tuple") and not TUPLE.fullmatch(node.value):
            self._refuse(node, f"the tuple {node.value!r}", "tuples of numbers")
        if "<" in value and node.tag != "!ref":
            # A reference to this text would be resolved further.
            self._refuse(node, f"the text {value!r}", "references behind !ref")

    def _check_reference(self, node) -> None:
        text = node.value
        if REFERENCE.fullmatch(text):
            return
        if not PATH_REFERENCE.fullmatch(text):
            allowed = "!ref <key> and paths such as !ref <key>/file"
            self._refuse(node, f"!ref {text}", allowed)
        for key in REFERENCE.findall(text):
            target = self._target(key)
            plain = isinstance(target, ruamel.yaml.ScalarNode) and target.tag in PLAIN
            if not plain or not PATH_PART.fullmatch(target.value):
                self._refuse(node, f"!ref {text}", f"with {key} a short plain text")

    def _check_pretrainer(self, node, names: tuple[str, ...]) -> None:
        if not isinstance(node, ruamel.yaml.MappingNode):
            self._refuse(node, node.tag, f"its mapping of {' and '.join(names)}")
        for key, value in node.value:
            if key.value not in names:
                found = f"the pretrainer's {key.value!r}"
                self._refuse(key, found, " and ".join(names))
            if not isinstance(value, ruamel.yaml.MappingNode):
                self._refuse(key, f"the pretrainer's {key.value}", "a mapping")
            if key.value in ("paths", "files"):
                for _, path in value.value:
                    self._check_path(path)
            if key.value == "custom_hooks":
                self._hooks |= {id(hook) for _, hook in value.value}

    def _check_path(self, node) -> None:
        """A hub's name before the file's is allowed, because the file is taken from the
        folder; a path to any other place is refused."""
        if not isinstance(node.value, str) or node.tag not in (*PLAIN, "!ref"):
            found = "a path that is not text"
            self._refuse(node, found, "names of files in the folder")
        text = node.value
        if node.tag == "!ref":
            text = REFERENCE.sub(lambda key: self._text_of(key[0]), text)
        is_outside = text[:1] in ("/", "~") or ".." in PurePosixPath(text).parts
        if is_outside or "\\" in text or ":" in text or not PurePosixPath(text).name:
            allowed = "names of files in the folder"
            self._refuse(node, f"the pretrainer's path {text}", allowed)

    def _target(self, key: str):
        """What `<key>` or `<key[subkey]>` refers to."""
        target = self._root
        for part in key.strip("<>").split("["):
            target = dict(self._items(target)).get(part.strip("]"))
        return target

    def _text_of(self, key: str) -> str:
        target = self._target(key)
        return str(target.value) if target else key

    def _items(self, node) -> list[tuple[str, object]]:
        if not isinstance(node, ruamel.yaml.MappingNode):
            return []
        return [(key.value, value) for key, value in node.value]

    def _refuse(self, node, found: str, allowed: str):
        line = "" if self._is_resolved else f":{node.start_mark.line + 1}"
        _refuse(f"{self._name}{line}", found, allowed)


def _check_labels(path: Path, name: str) -> None:
    """Checks labels, for a clear message; SpeechBrain reads them with
    `ast.literal_eval`, which runs no code."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line == CategoricalEncoder.EXTRAS_SEPARATOR:
                continue
            parts = line.strip().split(CategoricalEncoder.VALUE_SEPARATOR, maxsplit=1)
            try:
                ast.literal_eval(parts[0])
                ast.literal_eval(parts[1])
            except (ValueError, SyntaxError, IndexError, MemoryError, RecursionError):
                found = f"the label {line.strip()[:80]!r}"
                _refuse(f"{name}:{number}", found, "lines such as 'name' => 0")


def _rewrite_tensors(path: Path, name: str) -> None:
    """Rewrites a safetensors file from its tensors: a file can be valid both as
    safetensors and as a torch file, and how SpeechBrain reads it depends on the
    pretrainer."""
    try:
        # Cloned, because loaded tensors may be mapped from the file.
        tensors = {name: t.clone() for name, t in load_file(str(path)).items()}
    except (OSError, SafetensorError) as error:
        problem = one_line(error)
        raise InputError(f"{name}: is not a file of tensors: {problem}") from None
    save_file(tensors, str(path))


def _rewrite_weights(path: Path, name: str) -> None:
    """Rewrites a torch file from its tensors.

    `weights_only` reads a pickle with torch's own interpreter, which makes tensors and
    plain containers and calls nothing else. SpeechBrain leaves that to torch's default,
    which depends on the environment (`tensors_only`): the file that it reads is
    therefore written here.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        found = f"a pickle that asks for {match[1]}" if match else "a pickle of objects"
        _refuse(name, found, "files of tensors")
    except (OSError, RuntimeError, ValueError, LookupError, EOFError) as error:
        problem = one_line(error)
        raise InputError(f"{name}: is not a file of tensors: {problem}") from None
    torch.save(weights, path)


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _refuse(where: str, found: str, allowed: str):
    """Raises an `InputError` of one line."""
    found = " ".join(found.split())[:200]
    raise InputError(f"{where}: {found} is not allowed, only {allowed}; {WAY_OUT}")
