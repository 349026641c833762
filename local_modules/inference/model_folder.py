"""Writes the model folder: everything that inference needs, and nothing else.

The folder is self-contained. Its `custom.py` holds a copy of the parts of this package
that the model is made of, so that `foreign_class` loads it from a disk or a hub where
this project is not installed.
"""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

import speechbrain
import torch
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from safetensors.torch import save_file, save_model

from local_modules.corpus import licence
from local_modules.errors import InputError
from local_modules.evaluation.backend import CALIBRATION, Backend
from local_modules.evaluation.calibration import Calibration
from local_modules.files import put_on_disk
from local_modules.inference.trust import HPARAMS
from local_modules.templates import TEMPLATES

PACKAGE = __package__.partition(".")[0]
METRICS, CARD = "metrics.json", "README.md"
CALIBRATED_ANEW = "calibration"  # key in the metrics of a recalibrated folder
THRESHOLD = re.compile("^threshold:.*$", re.MULTILINE)  # in the hyperparameters
CORPUS = re.compile(r"^corpus:.*\n", re.MULTILINE)
THRESHOLD_TOLD = re.compile(r"The decision threshold .*$", re.MULTILINE)
PARTS = ("compute_features", "mean_var_norm", "embedding_model", "classifier")


def write_model_folder(
    folder: str | os.PathLike,
    hparams: Mapping,
    hparams_text: str,
    backend: Backend,
    metrics: Mapping,
) -> None:
    """Writes a folder that `EncoderClassifier`, `SpeakerRecognition` and
    `foreign_class` of SpeechBrain load.

    At any moment the folder is complete or absent, even after a power cut: it is
    written beside its destination and then moved there.

    Arguments
    ---------
    folder : str or os.PathLike
        The destination; an existing folder is replaced.
    hparams : mapping
        The trained objects: `embedding_model`, `classifier`, `label_encoder`; and the
        plain values `sample_rate`, `emb_dim` and `corpus`.
    hparams_text : str
        The recipe's HyperPyYAML with references resolved; the parts' subtrees are
        taken from it.
    backend : Backend
        For scoring beyond the cosine; its mean becomes `mean_var_norm_emb`.
    metrics : mapping
        As in `metrics.json`; the threshold of `valid` becomes the model's.
    """
    with _in_place_at_once(Path(folder)) as part:
        part.mkdir(parents=True)
        for name in ("embedding_model", "classifier"):
            save_model(hparams[name], str(part / f"{name}.safetensors"))
        statistics = {
            "glob_mean": backend.mean.contiguous(),
            "glob_std": torch.ones_like(backend.mean),
        }
        save_file(statistics, str(part / "mean_var_norm_emb.safetensors"))
        backend.save(part)
        hparams["label_encoder"].save(part / "label_encoder.txt")
        with open(part / METRICS, "w", encoding="utf-8") as file:
            json.dump(metrics, file, indent=2)
        settings = {
            "sample_rate": hparams["sample_rate"],
            "threshold": metrics["valid"]["eer_threshold"],
            "corpus": hparams["corpus"],
        }
        text = _model_hparams(hparams_text, settings)
        (part / HPARAMS).write_text(text, encoding="utf-8")
        (part / "custom.py").write_text(_custom_module(text), encoding="utf-8")
        card = _model_card(hparams, metrics)
        (part / CARD).write_text(card, encoding="utf-8")


def write_calibrated_folder(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    calibration: Calibration,
    rates: Mapping,
) -> None:
    """Copies a model folder, with another calibration and another threshold; complete
    or absent at any moment, too.

    Arguments
    ---------
    source : str or os.PathLike
        A folder that `write_model_folder` has written.
    folder : str or os.PathLike
        The destination; an existing folder is replaced, even if it is the source.
    calibration : Calibration
        Replaces the old one.
    rates : mapping
        Written to `metrics.json` as `calibration`: `trials`, the name of the list that
        it was fitted on, and the rates on that list in the form of `valid`; their
        threshold becomes the model's.
    """
    with _in_place_at_once(Path(folder)) as part:
        part.mkdir(parents=True)
        for path in Path(source).iterdir():
            if path.is_file():  # not the .git of a hub
                shutil.copyfile(path, part / path.name)
        calibration.save(part / CALIBRATION)
        metrics = json.loads((part / METRICS).read_text(encoding="utf-8"))
        with open(part / METRICS, "w", encoding="utf-8") as file:
            json.dump({**metrics, CALIBRATED_ANEW: rates}, file, indent=2)
        text = (part / HPARAMS).read_text(encoding="utf-8")
        text = THRESHOLD.sub(f"threshold: {rates['eer_threshold']!r}", text, count=1)
        (part / HPARAMS).write_text(text, encoding="utf-8")
        card = (part / CARD).read_text(encoding="utf-8")
        card = THRESHOLD_TOLD.sub(lambda _: _calibration_told(rates), card, count=1)
        (part / CARD).write_text(card, encoding="utf-8")


def is_calibrated_anew(folder: Path) -> bool:
    """Whether `write_calibrated_folder` has written a folder."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return CALIBRATED_ANEW in metrics


@contextlib.contextmanager
def _in_place_at_once(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write to; then flushes it to disk and moves it to
    `folder`, replacing an older one but keeping that one's subfolders."""
    folder = folder.resolve()  # the target of a link, not the link
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    for path in folder.iterdir() if folder.exists() else ():
        # The user's, such as .git: a model has no subfolders.
        if path.is_symlink() and path.is_dir():
            (part / path.name).symlink_to(os.readlink(path))
        elif path.is_dir():
            shutil.copytree(path, part / path.name, symlinks=True)
    for path in part.rglob("*"):
        if path.is_file() and not path.is_symlink():
            put_on_disk(path)
    if folder.exists():
        # Moved away before it is deleted: a deletion can be interrupted.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old)
    else:
        os.replace(part, folder)


def check_parts(hparams_text: str) -> None:
    """Checks, before training, that the parts of a model can be combined in one file.

    Arguments
    ---------
    hparams_text : str
        As of `write_model_folder`.

    Raises
    ------
    InputError
        Two of their modules define the same name, or one imports another of this
        package otherwise than by `from local_modules.MODULE import NAME` at its top.
    """
    _custom_module(_model_hparams(hparams_text, {}))


def _model_hparams(hparams_text: str, settings: Mapping) -> str:
    yaml = YAML()
    recipe = yaml.load(hparams_text)
    model = CommentedMap(settings)
    for part in PARTS:
        model[part] = recipe[part]
    text = io.StringIO()
    yaml.dump(model, text)
    text.write((TEMPLATES / "model_hparams.yaml").read_text(encoding="utf-8"))
    return text.getvalue()


def _custom_module(model_hparams: str) -> str:
    """The template with the sources of all modules of this package that it or the
    model's YAML names, and of those that these import."""
    sources: dict[str, str] = {}
    body = _inline(TEMPLATES / "custom.py", sources)
    for word in model_hparams.replace(":", " ").split():
        if word.startswith(f"{PACKAGE}."):
            _add_source(word.rpartition(".")[0], sources)
    _check_names({"custom.py": body, **sources})
    body = body.replace("MODULES = ()", f"MODULES = {tuple(sources)!r}")
    head, marker, rest = body.partition("def _stand_in_for")
    parts = [f"# From {name}\n\n{text}\n" for name, text in sources.items()]
    return head + "\n\n".join([*parts, marker]) + rest


def _check_names(sources: Mapping[str, str]) -> None:
    home: dict[str, tuple[str, str]] = {}
    for module, text in sources.items():
        for node in ast.parse(text).body:
            for name, what in _bound(node):
                other, earlier = home.setdefault(name, (module, what))
                if earlier != what:
                    raise InputError(
                        f"{other} and {module} both define {name}; a model folder "
                        "combines them in one file: rename one"
                    )


def _bound(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """The names that a statement binds, and what each is bound to."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            origin = [getattr(node, "module", None), alias.name]
            name = alias.asname or alias.name.partition(".")[0]
            is_whole = alias.asname or isinstance(node, ast.ImportFrom)
            yield name, ".".join(filter(None, origin)) if is_whole else name
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name, ast.dump(node)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id, ast.dump(node)


def _add_source(module: str, sources: dict[str, str]) -> None:
    if module not in sources:
        path = Path(importlib.util.find_spec(module).origin)
        sources[module] = _inline(path, sources).strip()


def _inline(path: Path, sources: dict[str, str]) -> str:
    """The text of a module without its imports of this package; adds the imported
    modules to `sources`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    for node in _project_imports(tree):
        if node not in tree.body or not _imports_plain_names(node):
            raise InputError(
                f"{path}:{node.lineno}: a model folder cannot follow this import; "
                f"write `from {PACKAGE}.MODULE import NAME` at the top of the file, "
                "without `as`, where NAME is no module"
            )
        _add_source(node.module, sources)
        for number in range(node.lineno - 1, node.end_lineno):
            lines[number] = ""
    return "".join(lines)


def _project_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports of this package, but those for type checkers, which never run."""
    never_run: list[ast.stmt] = []
    for node in ast.walk(tree):  # a block comes before its statements
        if isinstance(node, ast.If):
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                never_run += node.body
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and node not in never_run:
            origins = [getattr(node, "module", alias.name) for alias in node.names]
            is_ours = any(f"{name}.".startswith(f"{PACKAGE}.") for name in origins)
            if is_ours or getattr(node, "level", 0):
                yield node


def _imports_plain_names(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is absolute and brings in what a module defines, as it is
    called there."""
    if isinstance(node, ast.Import) or node.level:
        return False
    places = importlib.util.find_spec(node.module).submodule_search_locations or ()
    return not any(
        alias.asname or PathFinder.find_spec(alias.name, places) for alias in node.names
    )


def _model_card(hparams: Mapping, metrics: Mapping) -> str:
    rows = [
        f"| {split} | {100 * row['eer']:.2f} % | {row['min_dcf']:.3f} "
        f"| {row['n_target']} | {row['n_nontarget']} |"
        for split, row in metrics.items()
        if split in ("valid", "test")
    ]
    return (
        (TEMPLATES / "README.md")
        .read_text(encoding="utf-8")
        .format(
            encoder=_encoder_name(hparams["embedding_model"]),
            n_parameters=metrics["n_parameters"],
            sample_rate=hparams["sample_rate"],
            emb_dim=hparams["emb_dim"],
            speechbrain=speechbrain.__version__,
            corpus=hparams["corpus"],
            licence=licence(hparams["corpus"]),
            n_speakers=metrics["n_speakers"],
            train_minutes=metrics["train_seconds"] / 60,
            epochs=metrics["epochs"],
            rows="\n".join(rows),
            threshold=metrics["valid"]["eer_threshold"],
        )
    )


def _calibration_told(rates: Mapping) -> str:
    return (
        f"The decision threshold {rates['eer_threshold']:.4f} (cosine score) is the "
        f"one at the equal error rate, {100 * rates['eer']:.2f} %, on the "
        f"{rates['n_target']} target and {rates['n_nontarget']} non-target trials of "
        f"the list `{rates['trials']}`; `calibration.json` is fitted to the same list."
    )


def _encoder_name(embedding_model: torch.nn.Module) -> str:
    return type(getattr(embedding_model, "encoder", embedding_model)).__name__
