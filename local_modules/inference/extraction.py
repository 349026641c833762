"""Embeddings of audio files by a trained model, each computed once."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from local_modules.errors import InputError, one_line
from local_modules.evaluation.backend import Recordings
from local_modules.inference.embedding_store import Embedded, EmbeddingStore, stamp_of
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.speech import NO_HEADER
from local_modules.manifest import COLUMNS, read_manifest

TRIALS = "_trials.txt"  # after the name of a split
WINDOW_SECONDS = 120.0  # shorter files are embedded whole, as in training


def stretches_beside(
    trials: str | os.PathLike, folder: Path
) -> dict[Path, tuple[int, int]]:
    """The stretches of recordings that training compares, for one of its trial lists.

    Arguments
    ---------
    trials : str or os.PathLike
        A trial list.
    folder : Path
        The folder that its paths are relative to.

    Returns
    -------
    dict
        First sample and the one after the last, at the file's own rate, by file, as in
        the manifest `<split>.csv` beside a list `<split>_trials.txt`. Files that are
        used whole are left out; for other lists, that is all of them.

    Raises
    ------
    InputError
        The manifest is broken.
    """
    trials = Path(trials)
    manifest = trials.with_name(f"{trials.name.removesuffix(TRIALS)}.csv")
    if not trials.name.endswith(TRIALS) or not manifest.is_file():
        return {}
    # It may be another table.
    with open(manifest, encoding="utf-8", errors="replace") as file:
        if file.readline().strip() != ",".join(COLUMNS):
            return {}
    stretches = {}
    for u in read_manifest(manifest):
        path = folder / u.path
        try:
            info = soundfile.info(path)
        except (OSError, RuntimeError, TypeError):  # reported when it is read
            continue
        # Copies may have another rate, and a few samples more or less.
        rate = round((u.stop - u.start) / u.duration)
        start, stop = (n * info.samplerate // rate for n in (u.start, u.stop))
        if start > 0 or stop < info.frames:
            stretches[path] = start, min(stop, info.frames)
    return stretches


def embed_files(
    model: SpeakerModel,
    paths: Iterable[Path],
    store: EmbeddingStore,
    window_seconds: float = WINDOW_SECONDS,
    batch_seconds: float = 120.0,
    stretches: Mapping[Path, Sequence[int]] | None = None,
) -> tuple[dict[Path, Embedded], dict[Path, str]]:
    """Embeds files, those of similar length together.

    Arguments
    ---------
    model : SpeakerModel
        The model.
    paths : iterable of Path
        The files, absolute; each is embedded once.
    store : EmbeddingStore
        Has earlier embeddings, and keeps the new ones.
    window_seconds : float
        A longer file is cut into windows of equal length up to this; its embedding is
        the mean of theirs.
    batch_seconds : float
        Speech in a batch, padding included.
    stretches : mapping of Path to sequence of int | None
        For files that are not embedded whole, first sample and the one after the last,
        at the file's own rate.

    Returns
    -------
    embedded : dict
        By path.
    failures : dict
        The reason, by path, for files that can't be embedded.
    """
    embedded, failures, lengths, stamps = {}, {}, {}, {}
    stretches = stretches or {}
    for path in dict.fromkeys(paths):
        try:
            stretch = stretches.get(path, ())
            kept = store.get(model.fingerprint, window_seconds, path, stretch)
            if kept is None:
                stamps[path] = stamp_of(path)
                info = soundfile.info(path)
                start, stop = stretch or (0, info.frames)
                lengths[path] = (stop - start) / info.samplerate
            else:
                embedded[path] = kept
        except UnicodeEncodeError:
            failures[path] = "has a name that is not UTF-8"
        except TypeError:  # from soundfile, for raw audio without a header
            failures[path] = NO_HEADER
        except (OSError, RuntimeError) as error:
            failures[path] = one_line(error)
    order = sorted(lengths, key=lengths.get, reverse=True)
    with tqdm(
        total=len(order) + len(embedded),
        initial=len(embedded),
        desc=f"Embedding with {model.source}",
        unit="file",
        disable=not order,
    ) as progress:
        for batch in _batches(order, lengths, window_seconds, batch_seconds):
            found = _embed_batch(
                model, batch, stretches, window_seconds, batch_seconds, failures
            )
            done = found.items()
            store.put(model.fingerprint, window_seconds, done, stamps, stretches)
            embedded |= found
            progress.update(len(batch))
    return embedded, failures


def embed_list(
    model: SpeakerModel,
    names: Iterable[str],
    trials: str | os.PathLike,
    folder: str | os.PathLike,
    store: EmbeddingStore,
    **settings,
) -> tuple[dict[str, Embedded], dict[str, str]]:
    """Embeds the recordings of a trial list, as training does if it made the list.

    Arguments
    ---------
    model, store
        See `embed_files`, also for the further keywords.
    names : iterable of str
        The recordings, as the list names them.
    trials : str or os.PathLike
        The list's file.
    folder : str or os.PathLike
        The folder that its paths are relative to.

    Returns
    -------
    embedded, failures : dict
        As of `embed_files`, by name.
    """
    root = Path(folder).resolve()
    files = {name: root / name for name in names}
    stretches = stretches_beside(trials, root)
    found = embed_files(model, files.values(), store, stretches=stretches, **settings)
    embedded, failures = (
        {name: part[file] for name, file in files.items() if file in part}
        for part in found
    )
    return embedded, failures


def recordings_of(embedded: Sequence[Embedded]) -> Recordings:
    """Embedded files, in their order, in the form that is scored."""
    return Recordings(
        torch.from_numpy(np.stack([one.vector for one in embedded])),
        np.array([one.seconds for one in embedded]),
    )


def _batches(order, lengths, window_seconds, batch_seconds) -> Iterator[list[Path]]:
    """Batches of files, longest first, each as large as allowed."""
    batch, n_windows = [], 0
    for path in order:
        n_windows += max(1, -(-lengths[path] // window_seconds))
        longest = min(window_seconds, lengths[batch[0]] if batch else lengths[path])
        if batch and n_windows * longest > batch_seconds:
            yield batch
            batch, n_windows = [], max(1, -(-lengths[path] // window_seconds))
        batch.append(path)
    if batch:
        yield batch


def windows_of(
    wav: torch.Tensor, sample_rate: int, window_seconds: float
) -> list[torch.Tensor]:
    """Cuts a waveform, [time], into windows of about equal length, of at most
    `window_seconds`."""
    seconds = len(wav) / sample_rate
    return list(wav.tensor_split(max(1, int(np.ceil(seconds / window_seconds)))))


def _embed_batch(
    model, batch, stretches, window_seconds, batch_seconds, failures
) -> dict[Path, Embedded]:
    windows, owners, seconds = [], [], {}
    for path in batch:
        try:
            wav = model.read(path, *stretches.get(path, ()))
        except (OSError, RuntimeError, MemoryError, InputError) as error:
            failures[path] = one_line(error).removeprefix(f"{path}: ")
            continue
        seconds[path] = len(wav) / model.sample_rate
        own = windows_of(wav, model.sample_rate, window_seconds)
        windows += own
        owners += [path] * len(own)
    # The windows of one very long file are too many for one batch.
    longest = max(map(len, windows), default=1) / model.sample_rate
    n = max(1, int(batch_seconds / longest))
    try:
        groups = (windows[start : start + n] for start in range(0, len(windows), n))
        vectors = [vector for group in groups for vector in model.embed(group)]
    except RuntimeError:
        # One is too short for the model; the others can be embedded.
        vectors = []
        for window, path in zip(windows, owners, strict=True):
            try:
                vectors.append(model.embed([window])[0])
            except RuntimeError as error:
                failures[path] = one_line(error)
                vectors.append(None)
    found = {}
    for path in seconds:
        own = [v for v, o in zip(vectors, owners, strict=True) if o == path]
        if path in failures:
            continue
        vector = torch.stack(own).mean(dim=0).numpy()
        if np.isfinite(vector).all():
            found[path] = Embedded(vector, seconds[path])
        else:
            failures[path] = "holds samples too large for an embedding"
    return found
