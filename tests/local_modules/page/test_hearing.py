"""What the page may be given to hear."""

import numpy as np
import pytest
import soundfile

from local_modules.errors import InputError
from local_modules.page.hearing import hear


@pytest.mark.parametrize(
    "name, message",
    [
        ("quiet", "too quiet"),
        ("short", "s of speech; 0.5 s are needed"),
        ("noise", "no speech in its 2.0 s"),
        ("long", "121 s long; the maximum is 120 s"),
        ("broken", "can't be read. Save it as WAV"),
        ("headless", "can't be read. Save it as WAV"),
    ],
)
def test_a_recording_of_no_use_is_told_as_a_person_needs_it(
    name, message, verifier, bad
):
    with pytest.raises(InputError, match=message) as error:
        hear(verifier, bad[name], "Yours")
    text = str(error.value)
    assert text.startswith("Yours: ") and "\n" not in text
    assert bad[name] not in text  # where it lies here says nothing to anybody


@pytest.mark.parametrize("path", [None, "gone since.wav"])
def test_nothing_at_all(path, verifier):
    with pytest.raises(InputError, match="Yours: is missing"):
        hear(verifier, path, "Yours")


def test_clipping_is_a_warning(verifier, bad, words):
    heard = hear(verifier, bad["clipped"], "Yours")
    assert "Yours: is clipped" in heard.warning
    heard = hear(verifier, words["test0"][0], "Yours")
    assert heard.warning is None
    samples, _ = soundfile.read(words["test0"][0], dtype="float32")
    np.testing.assert_allclose(heard.samples, samples, atol=1e-6)
