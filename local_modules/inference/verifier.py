"""Speaker verification with the threshold of the model."""

from speechbrain.inference.speaker import SpeakerRecognition

from local_modules.masking import pad_to_multiple


class SpeakerVerifier(SpeakerRecognition):
    """SpeechBrain's `SpeakerRecognition` with this model's own threshold, the one at
    the equal error rate on its validation speakers."""

    HPARAMS_NEEDED = ["threshold"]

    def encode_batch(self, wavs, wav_lens=None, normalize=False):
        """As in SpeechBrain, with padding to whole frames: if the network masks it, as
        the Conformer does and ECAPA-TDNN does not, a waveform has the same embedding
        with and without padding."""
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
