"""A trained speaker model, ready to embed: a folder written by training, or any other
that SpeechBrain's `EncoderClassifier` loads."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.utils.fetching import LocalStrategy, fetch
from speechbrain.utils.logger import get_logger

from local_modules.embedder import UnpaddedEmbedder
from local_modules.errors import InputError, one_line
from local_modules.evaluation.backend import CALIBRATION, STATISTICS, Backend
from local_modules.inference.model_folder import CORPUS, THRESHOLD
from local_modules.inference.speech import read_waveform
from local_modules.inference.trust import (
    HPARAMS,
    check_is_model,
    checked_copy,
    tensors_only,
)
from local_modules.inference.verifier import SpeakerVerifier

logger = get_logger(__name__)

INTERFACE = "custom.py"  # in folders written by training
KNOW_NO_PADDING = (ResNet, Xvector)  # unwrapped in models on a hub


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
        run arbitrary code.

    Attributes
    ----------
    backend : Backend | None
        For scoring beyond the cosine, if the model has it.

    Raises
    ------
    InputError
        There is no such device; the model does not exist or can't be loaded; it isn't
        trusted and holds more than plain parameters of known parts
        (`local_modules.inference.trust`); or its backend is another model's.
    """

    def __init__(self, source: str, device: str = "cpu", trust: bool = False):
        self.source = source
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device}: {one_line(error)}") from None
        check_is_model(source)
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
                    is_ours = THRESHOLD.search(text)
                    interface = SpeakerVerifier if is_ours else EncoderClassifier
                    with tensors_only():
                        self.classifier = interface.from_hparams(
                            source=savedir, **options
                        )
                text = (Path(savedir) / HPARAMS).read_text(encoding="utf-8")
                self.backend = _backend_of(source, savedir)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"{source}: is not a speaker model: {one_line(error)}"
                ) from error
        mods = self.classifier.mods
        if isinstance(mods.embedding_model, KNOW_NO_PADDING):
            mods.embedding_model = UnpaddedEmbedder(mods.embedding_model).eval()
        self.sample_rate = self.classifier.audio_normalizer.sample_rate
        self.fingerprint = self._fingerprint(text)
        if self.backend is not None:
            self._check_backend()

    def _fingerprint(self, text: str) -> str:
        """Differs between models that may embed differently; the threshold and the
        corpus are left out."""
        digest = hashlib.sha256(CORPUS.sub("", THRESHOLD.sub("", text)).encode())
        for name, value in sorted(self.classifier.mods.state_dict().items()):
            digest.update(name.encode())
            octets = value.cpu().flatten().contiguous().view(torch.uint8)
            digest.update(octets.numpy().tobytes())
        return digest.hexdigest()

    def _check_backend(self) -> None:
        """Checks that the backend is of this model."""
        try:
            width = self.embed([torch.zeros(self.sample_rate)]).shape[-1]
        except RuntimeError:
            return  # what can't be embedded is reported per file
        if width != len(self.backend.mean):
            raise InputError(
                f"{self.source}: its {STATISTICS} is for embeddings of "
                f"{len(self.backend.mean)} numbers; the model's have {width}"
            )

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The waveform of a file, from sample `start` up to before `stop`, mono and at
        the model's rate, [time].

        Raises
        ------
        InputError
            It can't be decoded, is truncated or empty, or holds NaN or infinity.
        """
        return read_waveform(path, self.sample_rate, start, stop)

    @torch.no_grad()
    def embed(self, wavs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings of waveforms, [n, emb_dim], on the CPU."""
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        lens = torch.tensor([len(wav) for wav in wavs]) / padded.shape[1]
        return self.classifier.encode_batch(padded, lens).squeeze(1).float().cpu()


def kept_beside(source: str | os.PathLike, name: str) -> Path:
    """The path of a file that belongs to a model but is not part of it.

    Arguments
    ---------
    source : str or os.PathLike
        The model.
    name : str
        The file's name.

    Returns
    -------
    Path
        Beside the model's folder, because a new training replaces that folder; for a
        model from the hub, or if that place or an existing file there is not writable,
        in results/ with the model's name as a prefix.
    """
    folder = Path(source).resolve()
    if folder.is_dir():
        beside = folder.parent / name
        is_theirs = beside.exists() and not os.access(beside, os.W_OK)
        if os.access(folder.parent, os.W_OK) and not is_theirs:
            return beside
        if is_theirs:
            logger.warning(f"{beside}: can't be written to; not used")
        source = folder.relative_to(folder.anchor)
    return Path("results") / f"{str(source).replace('/', '--')}.{name}"


def _backend_of(source: str, folder: str) -> Backend | None:
    if Path(source).is_dir():
        return Backend.load(source)
    for name in (STATISTICS, CALIBRATION):
        try:
            fetch(name, source, folder, local_strategy=LocalStrategy.COPY)
        except LocalEntryNotFoundError:
            logger.warning(
                f"{source}: {name} is not on this machine, and the hub can't be "
                "reached; without it, scores are less reliable"
            )
        except EntryNotFoundError:
            pass
    return Backend.load(folder)
