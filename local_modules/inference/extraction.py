"""Embeddings of audio files by a trained model, each computed once.

A model is a folder that training has written or any other speaker model that
SpeechBrain's `EncoderClassifier` loads.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.utils.fetching import LocalStrategy, fetch
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from local_modules.embedder import UnpaddedEmbedder
from local_modules.errors import InputError, RunError, is_disk_full, one_line
from local_modules.evaluation.backend import CALIBRATION, STATISTICS, Backend
from local_modules.inference.speech import NO_HEADER, read_waveform
from local_modules.inference.trust import HPARAMS, checked_copy, tensors_only
from local_modules.inference.verifier import SpeakerVerifier
from local_modules.manifest import COLUMNS, read_manifest

logger = get_logger(__name__)

INTERFACE = "custom.py"  # of a folder that training has written
EMBEDDINGS = "embeddings.db"  # what a store of a model's is called
TRIALS = "_trials.txt"  # after the name of a split
KNOW_NO_PADDING = (ResNet, Xvector)  # as models on a hub have them, unwrapped


@dataclass(frozen=True)
class Embedded:
    """What is known of a file.

    Arguments
    ---------
    vector : numpy.ndarray
        Its embedding, float32, [emb_dim].
    seconds : float
        Its duration.
    """

    vector: np.ndarray
    seconds: float


class SpeakerModel:
    """A trained model, ready to embed.

    Arguments
    ---------
    source : str
        A folder, or a name on the Hugging Face hub.
    device : str
        Where to compute.
    trust : bool
        Loads the model unchecked, and runs its `custom.py` if it has one. Both can
        run any code.

    Attributes
    ----------
    backend : Backend | None
        What it has for scores beyond the cosine.

    Raises
    ------
    InputError
        There is no such device, no model that can be loaded, or it isn't trusted and
        holds more than plain parameters of known parts
        (`local_modules.inference.trust`); or its backend is another model's.
    """

    def __init__(self, source: str, device: str = "cpu", trust: bool = False):
        self.source = source
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device}: {one_line(error)}") from None
        with tempfile.TemporaryDirectory() as savedir:
            options = {"savedir": savedir, "run_opts": {"device": device}}
            try:
                if trust and (Path(source) / INTERFACE).exists():
                    self.classifier = foreign_class(
                        source=str(source),
                        pymodule_file=INTERFACE,
                        classname="SpeakerVerifier",
                        **options,
                    )
                elif trust:
                    self.classifier = EncoderClassifier.from_hparams(
                        source=str(source), **options
                    )
                else:
                    checked_copy(source, savedir)
                    text = (Path(savedir) / HPARAMS).read_text(encoding="utf-8")
                    is_ours = re.search("^threshold:", text, re.MULTILINE)
                    interface = SpeakerVerifier if is_ours else EncoderClassifier
                    with tensors_only():
                        self.classifier = interface.from_hparams(
                            source=savedir, **options
                        )
                text = (Path(savedir) / HPARAMS).read_bytes()
                self.backend = _backend_of(source, savedir)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"{source}: is no speaker model: {one_line(error)}"
                ) from error
        mods = self.classifier.mods
        if isinstance(mods.embedding_model, KNOW_NO_PADDING):
            mods.embedding_model = UnpaddedEmbedder(mods.embedding_model).eval()
        self.sample_rate = self.classifier.audio_normalizer.sample_rate
        self.fingerprint = self._fingerprint(text)
        if self.backend is not None:
            self._check_backend()

    def _fingerprint(self, text: bytes) -> str:
        """Differs between models that may embed differently."""
        digest = hashlib.sha256(text)
        for name, value in sorted(self.classifier.mods.state_dict().items()):
            digest.update(name.encode())
            octets = value.cpu().flatten().contiguous().view(torch.uint8)
            digest.update(octets.numpy().tobytes())
        return digest.hexdigest()

    def _check_backend(self) -> None:
        """Makes sure that it is of this model."""
        try:
            width = self.embed([torch.zeros(self.sample_rate)]).shape[-1]
        except RuntimeError:
            return  # what it can't embed is told of each file
        if width != len(self.backend.mean):
            raise InputError(
                f"{self.source}: its {STATISTICS} is of embeddings of "
                f"{len(self.backend.mean)} numbers; the model makes {width}"
            )

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The waveform of a file, from sample `start` up to before `stop`, mono and at
        the model's rate, [time].

        Raises
        ------
        InputError
            It can't be decoded, breaks off, or holds nothing, NaN or infinity.
        """
        return read_waveform(path, self.sample_rate, start, stop)

    @torch.no_grad()
    def embed(self, wavs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings of waveforms, [n, emb_dim], on the CPU."""
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        lens = torch.tensor([len(wav) for wav in wavs]) / padded.shape[1]
        return self.classifier.encode_batch(padded, lens).squeeze(1).float().cpu()


def _backend_of(source: str, folder: str) -> Backend | None:
    if Path(source).is_dir():
        return Backend.load(source)
    for name in (STATISTICS, CALIBRATION):
        try:
            fetch(name, source, folder, local_strategy=LocalStrategy.COPY)
        except LocalEntryNotFoundError:
            logger.warning(
                f"{source}: {name} is not on this machine, and the hub can't be asked "
                "for it; without it, scores are less sure"
            )
        except EntryNotFoundError:
            pass
    return Backend.load(folder)


class EmbeddingStore:
    """Embeddings in a file, by model and by audio file as it was then; several
    processes may use it at a time. A `with` closes it.

    Arguments
    ---------
    path : str or os.PathLike
        An SQLite file, made if there is none.

    Raises
    ------
    InputError
        Embeddings can't be kept there, or the file is damaged.
    """

    def __init__(self, path):
        self.path = Path(path)
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60.0)
        with self._told(), self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS embeddings (model TEXT, window REAL, "
                "path TEXT, size INTEGER, mtime_ns INTEGER, seconds REAL, vector BLOB, "
                "PRIMARY KEY (model, window, path)) WITHOUT ROWID"
            )

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def get(
        self, model: str, window: float, path: Path, stretch: Sequence[int] = ()
    ) -> Embedded | None:
        """What is kept of a file or of a stretch of it, unless it has changed since.

        Raises
        ------
        InputError
            The store is damaged.
        """
        with self._told():
            row = self._database.execute(
                "SELECT size, mtime_ns, seconds, vector FROM embeddings "
                "WHERE model = ? AND window = ? AND path = ?",
                (model, window, _key(path, stretch)),
            ).fetchone()
        if row is None or row[:2] != _stamp(path):
            return None
        return Embedded(np.frombuffer(row[3], np.float32), row[2])

    def put(
        self,
        model: str,
        window: float,
        embedded: Iterable[tuple[Path, Embedded]],
        stamps: Mapping[Path, tuple[int, int]],
        stretches: Mapping[Path, Sequence[int]] | None = None,
    ) -> None:
        """Keeps files, all of them or, if it is killed meanwhile, none.

        `stamps` are their sizes and times before they were read: one that has changed
        meanwhile is embedded again the next time. `stretches` has the parts of those
        that were not embedded whole.

        Raises
        ------
        InputError
            The file can't be written to.
        RunError
            The disk is full.
        """
        stretches = stretches or {}
        rows = [
            (model, window, _key(p, stretches.get(p, ())), *stamps[p])
            + (e.seconds, e.vector.tobytes())
            for p, e in embedded
        ]
        with self._told(), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A place that can't be written to, or is full, and a file that is damaged are
        a person's to know."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            told = f"{self.path}: embeddings can't be kept there: {error}"
            if is_disk_full(error):
                raise RunError(f"{told}; make room") from None
            raise InputError(told) from None


def kept_beside(source: str | os.PathLike, name: str) -> Path:
    """Where a file is kept that belongs to a model but is no part of it.

    Arguments
    ---------
    source : str or os.PathLike
        The model.
    name : str
        Of the file.

    Returns
    -------
    Path
        Beside the model's folder, which a new training replaces; of a model from the
        hub, or in a place that can't be written to, in results/ and with the model's
        name before it.
    """
    folder = Path(source).resolve()
    if folder.is_dir():
        if os.access(folder.parent, os.W_OK):
            return folder.parent / name
        source = folder.relative_to(folder.anchor)
    return Path("results") / f"{str(source).replace('/', '--')}.{name}"


def stretches_beside(
    trials: str | os.PathLike, folder: Path
) -> dict[Path, tuple[int, int]]:
    """What training compares of the recordings in a trial list of its own.

    Arguments
    ---------
    trials : str or os.PathLike
        A trial list.
    folder : Path
        Where its paths begin.

    Returns
    -------
    dict
        First sample and the one after the last, at the file's own rate, by file, as in
        the manifest `<split>.csv` beside a list `<split>_trials.txt`; whole files are
        not among them, and those of other lists are all whole.

    Raises
    ------
    InputError
        The manifest is broken.
    """
    trials = Path(trials)
    manifest = trials.with_name(f"{trials.name.removesuffix(TRIALS)}.csv")
    if not trials.name.endswith(TRIALS) or not manifest.is_file():
        return {}
    # It may be a table of something else.
    with open(manifest, encoding="utf-8", errors="replace") as file:
        if file.readline().strip() != ",".join(COLUMNS):
            return {}
    stretches = {}
    for u in read_manifest(manifest):
        path = folder / u.path
        try:
            info = soundfile.info(path)
        except (OSError, RuntimeError, TypeError):  # told where it is read
            continue
        # Copies may have another rate, and a few samples more or less.
        rate = round((u.stop - u.start) / u.duration)
        start, stop = (n * info.samplerate // rate for n in (u.start, u.stop))
        if start > 0 or stop < info.frames:
            stretches[path] = start, min(stop, info.frames)
    return stretches


def _key(path: Path, stretch: Sequence[int]) -> str:
    """What a store calls a file or a stretch of it; nothing lies below a file."""
    return "/".join([str(path), *map(str, stretch)])


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, which change with it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def embed_files(
    model: SpeakerModel,
    paths: Iterable[Path],
    store: EmbeddingStore,
    window_seconds: float = 20.0,
    batch_seconds: float = 120.0,
    stretches: Mapping[Path, Sequence[int]] | None = None,
) -> tuple[dict[Path, Embedded], dict[Path, str]]:
    """Embeds files, those of about one length together.

    Arguments
    ---------
    model : SpeakerModel
        The model.
    paths : iterable of Path
        The files, absolute; each is embedded once.
    store : EmbeddingStore
        Has what was embedded earlier, and keeps what is now.
    window_seconds : float
        A longer file is cut into windows of equal length up to this; its embedding is
        the mean of theirs.
    batch_seconds : float
        Speech in a batch, padding included.
    stretches : mapping of Path to sequence of int | None
        Of files that are not embedded whole, first sample and the one after the last,
        at the file's own rate.

    Returns
    -------
    embedded : dict
        By path.
    failures : dict
        Why, by path, for those that can't be embedded.
    """
    embedded, failures, lengths, stamps = {}, {}, {}, {}
    stretches = stretches or {}
    for path in dict.fromkeys(paths):
        try:
            stretch = stretches.get(path, ())
            kept = store.get(model.fingerprint, window_seconds, path, stretch)
            if kept is None:
                stamps[path] = _stamp(path)
                info = soundfile.info(path)
                start, stop = stretch or (0, info.frames)
                lengths[path] = (stop - start) / info.samplerate
            else:
                embedded[path] = kept
        except UnicodeEncodeError:
            failures[path] = "has a name that is not UTF-8"
        except TypeError:  # of what soundfile takes for samples without a header
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


def _batches(order, lengths, window_seconds, batch_seconds) -> Iterator[list[Path]]:
    """Files, longest first, as many at a time as a batch may hold."""
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
    """Cuts a waveform, [time], into windows of about equal length of at most so many
    seconds."""
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
        # One that is too short for the model; the others are not to blame.
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
