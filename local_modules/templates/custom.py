"""Speaker verification with this model's own threshold.

    from speechbrain.inference.interfaces import foreign_class

    verifier = foreign_class(
        source=FOLDER, pymodule_file="custom.py", classname="SpeakerVerifier"
    )
    score, same_speaker = verifier.verify_files("one.wav", "two.wav")

Written with the model: the parts of it stand here in full, so that nothing but
SpeechBrain and safetensors has to be installed.
"""

import importlib.util
import sys
import types

from speechbrain.inference.speaker import SpeakerRecognition

from local_modules.masking import pad_to_multiple

MODULES = ()  # the project's names of the parts in this file


class SpeakerVerifier(SpeakerRecognition):
    """SpeechBrain's `SpeakerRecognition` with the threshold of this model, which is
    the one of the equal error rate on its validation speakers."""

    HPARAMS_NEEDED = ["threshold"]

    def encode_batch(self, wavs, wav_lens=None, normalize=False):
        """As in SpeechBrain; a padded waveform gives the embedding that it gives
        alone."""
        if wav_lens is not None:
            hop = self.mods.compute_features.compute_STFT.hop_length
            wavs, wav_lens = pad_to_multiple(wavs, wav_lens, hop)
        return super().encode_batch(wavs, wav_lens, normalize)

    def verify_batch(
        self, wavs1, wavs2, wav1_lens=None, wav2_lens=None, threshold=None
    ):
        """As in SpeechBrain; the model's own threshold unless one is given."""
        if threshold is None:
            threshold = self.hparams.threshold
        return super().verify_batch(wavs1, wavs2, wav1_lens, wav2_lens, threshold)

    def verify_files(self, path_x, path_y, threshold=None):
        """Score and decision of two files; any format and sample rate."""
        wavs = [self.load_audio(str(path)).unsqueeze(0) for path in (path_x, path_y)]
        score, decision = self.verify_batch(*wavs, threshold=threshold)
        return score[0], decision[0]


def _stand_in_for(names):
    """hyperparams.yaml names the parts as the project does that trained the model;
    where it is not installed, this file takes the place of its modules."""
    try:
        specs = [importlib.util.find_spec(name) for name in names]
    except ImportError:
        specs = []
    # Another model's stand-in has another name in its spec.
    if [spec and spec.name for spec in specs] != list(names):
        package, *_ = names[0].split(".")
        for name in (package, *names):
            module = types.ModuleType(name)
            module.__dict__.update(globals())
            module.__name__ = name
            sys.modules[name] = module
        for name in names:
            setattr(sys.modules[package], name.split(".")[1], sys.modules[name])


_stand_in_for(MODULES)
