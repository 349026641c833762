"""Embeddings of many recordings, in a file for other programs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from local_modules.errors import InputError, printable
from local_modules.files import replacing, writing_to
from local_modules.inference.embedding_store import EmbeddingStore
from local_modules.inference.extraction import embed_files
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.verification import WINDOW_SECONDS
from local_modules.preparation.scan import find_audio

SUFFIXES = (".npy", ".safetensors")
NO_LINE = "has a name that can't be listed one path per line"


def find_recordings(names: Iterable[str]) -> list[Path]:
    """Files as given, and all audio in folders, links followed.

    Raises
    ------
    InputError
        A folder has no audio, or can't be read.
    """
    found = []
    # Blank lines of a list are skipped: Path takes them for the current folder.
    for path in map(Path, filter(None, names)):
        if os.path.isdir(path):
            layout = "recordings are expected in it or below"
            found += (path / name for name in find_audio(path, layout, key="folder"))
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def embed_to_file(
    model: SpeakerModel, paths: Sequence[Path], output: Path
) -> tuple[int, dict[Path, str]]:
    """Writes the embeddings of recordings; after an interruption, continues where it
    stopped.

    Arguments
    ---------
    model : SpeakerModel
        The model.
    paths : sequence of Path
        The recordings.
    output : Path
        `.npy` for an array, [recordings, emb_dim], with a `.npy.txt` of the paths, one
        per line, beside it; `.safetensors` for vectors by path.

    Returns
    -------
    n_written : int
        How many were written.
    failures : dict
        For the others, the reason by path.

    Raises
    ------
    InputError
        The output has another suffix, or can't be written.
    """
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: the name has to end in {' or '.join(SUFFIXES)}")
    failures = {p: "is not a regular file" for p in paths if not os.path.isfile(p)}
    failures |= {p: NO_LINE for p in paths if printable(str(p)) != str(p)}
    # Links and folders may name one file in several ways: it is embedded once.
    absolute = {path: path.resolve() for path in paths if path not in failures}
    kept = output.with_name(f".{output.name}.db")
    with writing_to(output):
        with EmbeddingStore(kept) as store:
            embedded, failed = embed_files(
                model, absolute.values(), store, WINDOW_SECONDS
            )
        vectors = {p: embedded[q].vector for p, q in absolute.items() if q in embedded}
        if vectors:
            _write(vectors, output)
        kept.unlink()
    failures |= {p: failed[q] for p, q in absolute.items() if q in failed}
    return len(vectors), failures


def _write(vectors: dict[Path, np.ndarray], output: Path) -> None:
    if output.suffix == ".npy":
        # If killed between the two writes, old vectors must not stand beside new paths.
        output.unlink(missing_ok=True)
        with replacing(output.with_name(f"{output.name}.txt")) as file:
            file.writelines(f"{path}\n" for path in vectors)
        with replacing(output, binary=True) as file:
            np.save(file, np.stack(list(vectors.values())))
    else:
        with replacing(output, binary=True) as file:
            file.write(
                save({str(p): np.ascontiguousarray(v) for p, v in vectors.items()})
            )
