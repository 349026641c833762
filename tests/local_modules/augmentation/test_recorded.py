"""Folders of noises and of room responses, with the layouts that corpora have."""

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio import preprocess

from local_modules.augmentation import recorded
from local_modules.augmentation.recorded import (
    find_noises,
    find_responses,
    read_noises,
    read_responses,
)
from local_modules.errors import InputError
from tests.recordings import write_streamed_flac

RATE = 16000
MUSAN = {
    "noise": ("free-sound/noise-free-sound-0000", "sound-bible/noise-sound-bible-0001"),
    "music": ("fma/music-fma-0000", "hd-classical/music-hd-0002"),
    "speech": ("librivox/speech-librivox-0000", "us-gov/speech-us-gov-0003"),
}
REAL = "RIRS_NOISES/real_rirs_isotropic_noises"
RIRS_NOISES = {
    "RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001.wav": True,
    "RIRS_NOISES/simulated_rirs/largeroom/Room200/Room200-00100.wav": True,
    f"{REAL}/RVB2014_type1_rir_largeroom1_far_angla.wav": True,
    f"{REAL}/RWCP_type4_rir_p30r.wav": True,
    f"{REAL}/air_type1_air_binaural_aula_carolina_1_1_45_3.wav": True,
    f"{REAL}/RVB2014_type1_noise_largeroom1_1.wav": False,
    f"{REAL}/RWCP_type5_noise_cirline_ofc_ambient1.wav": False,
    "RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav": False,
}


def write(path, wave, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype)


def tone(hertz, seconds, rate=RATE):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def musan(tmp_path):
    """Tones: of 1 kHz in noise/, 2 kHz in music/, and many in speech/."""
    root = tmp_path / "corpora"
    for kind, hertz in (("noise", 1000), ("music", 2000)):
        for name in MUSAN[kind]:
            write(root / "musan" / kind / f"{name}.wav", tone(hertz, 3))
    for number in range(20):
        place, stem = MUSAN["speech"][number % 2].split("/")
        path = root / "musan" / "speech" / place / f"{stem}{number}.wav"
        write(path, tone(100 + 100 * number, 12))
    for kind in MUSAN:
        (root / "musan" / kind / "ANNOTATIONS").write_text("names of the files\n")
    (root / "musan" / "README").write_text("about it\n")
    return root


@pytest.mark.parametrize("below", [".", "musan"])
def test_musan_has_three_kinds(musan, below):
    found = find_noises(str(musan / below))
    assert [kind.name for kind in found] == ["noise", "music", "speech"]
    assert [len(paths) for paths in found.values()] == [2, 2, 20]
    # The ranges of the x-vector recipe.
    ranges = [(kind.snr_low, kind.snr_high, kind.is_babble) for kind in found]
    assert ranges == [(0, 15, False), (5, 15, False), (13, 20, True)]


def test_any_folder_is_noise(tmp_path):
    write(tmp_path / "street" / "1.flac", tone(500, 1))
    write(tmp_path / "fan.ogg", tone(500, 1), subtype="VORBIS")
    ((kind, paths),) = find_noises(str(tmp_path)).items()
    assert kind.name == "noise" and paths == ("fan.ogg", "street/1.flac")


def test_one_folder_called_as_musans_makes_no_musan(tmp_path):
    for place in ("cafe", "music"):
        write(tmp_path / place / "1.wav", tone(500, 1))
    ((kind, paths),) = find_noises(str(tmp_path)).items()
    assert kind.name == "noise" and paths == ("cafe/1.wav", "music/1.wav")


def test_beside_musan_there_may_be_anything(musan):
    write(musan / "voxceleb" / "1.wav", tone(500, 1))
    assert sum(map(len, find_noises(str(musan)).values())) == 24


def test_beside_the_three_kinds_there_is_nothing_else(musan):
    write(musan / "musan" / "mine" / "1.wav", tone(500, 1))
    with pytest.raises(InputError, match="mine/1.wav lies beside noise/, music/ and"):
        find_noises(str(musan / "musan"))


def test_rirs_noises_without_its_noises(tmp_path):
    for path in RIRS_NOISES:
        write(tmp_path / path, tone(500, 0.1))
    wanted = {path for path, is_response in RIRS_NOISES.items() if is_response}
    assert set(find_responses(str(tmp_path))) == wanted
    inside = find_responses(str(tmp_path / "RIRS_NOISES"))
    assert {f"RIRS_NOISES/{path}" for path in inside} == wanted


@pytest.mark.parametrize(
    ("find", "key"), [(find_noises, "noise_folder"), (find_responses, "rir_folder")]
)
def test_a_folder_without_them_is_one_line(find, key, tmp_path):
    (tmp_path / "text.txt").write_text("no audio")
    for folder, words in ((tmp_path / "none", "does not exist"), (tmp_path, "1 .txt")):
        with pytest.raises(InputError, match=words) as caught:
            find(str(folder))
        assert str(caught.value).startswith(f"{key} {folder}: ")
        assert "\n" not in str(caught.value)
    write(tmp_path / "pointsource_noises" / "a.wav", tone(500, 0.1))
    if find is find_responses:
        with pytest.raises(InputError, match="noises only"):
            find(str(tmp_path))


def peaks(samples):
    """Frequencies in Hz that stand out of the spectrum of [time]."""
    spectrum = np.abs(np.fft.rfft(samples.double().numpy() * np.hanning(len(samples))))
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return sorted({round(f, -2) for f in hertz[spectrum > 0.1 * spectrum.max()]})


def test_stretches_of_each_kind(musan, caplog):
    caplog.set_level("INFO")
    samples, kinds = read_noises(str(musan), RATE)
    assert kinds.tolist() == [[0, 2, 0, 15], [2, 2, 5, 15], [4, 20, 13, 20]]
    assert f"{musan}: 2 noise, 2 music, 20 speech recordings" in caplog.text
    assert samples.shape == (24, 10 * RATE) and samples.dtype == torch.int16
    # Of 3 s, repeated.
    assert [peaks(row) for row in samples[:4]] == [[1000], [1000], [2000], [2000]]
    assert (samples.abs().amax(dim=1) >= 32766).all()
    n_voices = [len(peaks(row)) for row in samples[4:]]
    # Three to seven voices, of which two may be the same.
    assert max(n_voices) <= 7 and min(n_voices) >= 2 and len(set(n_voices)) > 2


def test_a_limit_keeps_some_of_all_recordings(tmp_path, monkeypatch):
    for number in range(6):
        write(tmp_path / f"{number}.wav", tone(500 + 500 * number, 30))
    assert len(read_noises(str(tmp_path), RATE).samples) == 18
    monkeypatch.setattr(recorded, "NOISE_GIB", 9.5 * 2 * 10 * RATE / 2**30)
    found = []
    for _ in range(2):
        read_noises.cache_clear()
        found.append(read_noises(str(tmp_path), RATE).samples)
    assert len(found[0]) == 9
    assert len({tuple(peaks(row)) for row in found[0]}) >= 4
    assert torch.equal(*found)


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1)])
def test_noise_of_another_rate(rate, channels, tmp_path):
    wave = tone(1500, 25, rate)
    write(tmp_path / "a.wav", np.stack([wave] * channels, axis=1), rate)
    samples, _ = read_noises(str(tmp_path), RATE)
    assert samples.shape == (2, 10 * RATE)
    assert all(peaks(row) == [1500] for row in samples)


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, caplog):
    write(tmp_path / "a.wav", tone(500, 1))
    write(tmp_path / "silent.wav", np.zeros(RATE))
    (tmp_path / "broken.wav").write_text("no audio")
    write_streamed_flac(tmp_path / "streamed.flac", tone(500, 1), RATE)
    samples, _ = read_noises(str(tmp_path), RATE)
    assert len(samples) == 1
    assert len(read_responses(str(tmp_path), RATE)) == 1
    assert sum("broken.wav" in record.message for record in caplog.records) == 2
    assert sum("streamed.flac" in record.message for record in caplog.records) == 2
    (tmp_path / "a.wav").unlink()
    read_noises.cache_clear(), read_responses.cache_clear()
    for read in (read_noises, read_responses):
        with pytest.raises(InputError, match="unusable"):
            read(str(tmp_path), RATE)


def test_a_response_begins_with_its_direct_path(tmp_path):
    rng = np.random.default_rng(0)
    response = 0.1 * rng.standard_normal((30000, 2))
    response[:700] *= 0.01  # before the sound arrives
    response[700] = -0.8, 0.2
    write(tmp_path / "long.wav", response, subtype="FLOAT")
    write(tmp_path / "short.wav", response[650:1000, :1], subtype="FLOAT")
    short, long = sorted(
        read_responses(str(tmp_path), RATE), key=lambda row: row.count_nonzero()
    )
    assert long.shape == (RATE,)  # a second
    np.testing.assert_allclose(long, response[700:16700, 0] / -0.8, rtol=1e-5)
    assert torch.equal(short[:300], long[:300]) and not short[300:].any()


def test_a_response_of_an_odd_rate_takes_no_gigabytes(tmp_path, monkeypatch):
    """As torchaudio's table of filters from 44 101 Hz has."""
    monkeypatch.setattr(preprocess, "Resample", None)
    write(tmp_path / "a.wav", np.eye(1, 4410)[0], rate=44101)
    (response,) = read_responses(str(tmp_path), RATE)
    assert response[0] == 1.0 and response[1:].abs().max() < 0.5


def test_of_very_many_responses_some_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "MAX_RESPONSES", 5)
    for number in range(12):
        write(tmp_path / f"{number}.wav", np.eye(1, 100 + number)[0] + 0.1)
    assert len(read_responses(str(tmp_path), RATE)) == 5
