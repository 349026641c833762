"""The page's pictures, read back as what a browser gets."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.spatial.distance import pdist

from local_modules.page.figures import draw_map, draw_recording, draw_scale

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
DENSITIES = {"edges": [-4, -2, 0, 2, 4], "target": [0, 0, 0.2, 0.3]}
DENSITIES["nontarget"] = DENSITIES["target"][::-1]


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_scale_names_what_it_shows():
    with_densities = texts(draw_scale(1.5, 0.0, "Ratio", DENSITIES))
    assert {"two people", "one person", "decision", "these two"} < set(with_densities)
    without = texts(draw_scale(1.5, 0.0, "Ratio"))
    assert "Ratio" in without and "one person" not in without


def test_a_score_beyond_the_scale_is_still_on_it():
    def ticks(svg):
        found = (text.replace("−", "-") for text in texts(svg))
        return [float(text) for text in found if re.fullmatch(r"-?[\d.]+", text)]

    assert max(ticks(draw_scale(1.5, 0.0, "Ratio", DENSITIES))) <= 5
    assert max(ticks(draw_scale(30.0, 0.0, "Ratio", DENSITIES))) >= 30


@pytest.mark.parametrize("seconds", [0.5, 60.0])
def test_a_tone_is_a_line_in_the_spectrogram(seconds):
    """At the height of its frequency: 2 kHz is a quarter of the way up to 8."""
    time = np.arange(int(seconds * 16000)) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 2000 * time).astype(np.float32)
    svg = draw_recording(tone, 16000)
    assert len(svg) < 500_000  # however long
    (image,) = ElementTree.fromstring(svg).iter(f"{SVG}image")
    octets = base64.b64decode(image.get(LINK).partition(",")[2])
    rows = imread(io.BytesIO(octets))[..., :3].sum(axis=(1, 2))
    height = rows.argmax() / (len(rows) - 1)
    assert min(height, 1 - height) == pytest.approx(0.25, abs=0.01)


def test_near_on_the_map_is_near_in_truth():
    """Voices that lie on a plane in 16 dimensions keep their distances."""
    rng = np.random.default_rng(0)
    plane, _ = np.linalg.qr(rng.standard_normal((16, 2)))
    vectors = 1.0 + rng.standard_normal((7, 2)) @ plane.T
    names = ["ann", "ann", "bob", "bob", "bob", "cleo"]
    root = ElementTree.fromstring(draw_map(names, vectors[:6], vectors[6]))
    dots = [
        (float(node.get("x")), float(node.get("y")))
        for group in root.iter(f"{SVG}g")
        if group.get("id", "").startswith("PathCollection")
        for node in group.iter(f"{SVG}use")
    ]
    assert len(dots) == 7
    shares = pdist(dots) / pdist(vectors)
    np.testing.assert_allclose(shares, shares[0], rtol=1e-3)
    assert "100 % of the variance" in "".join(texts(draw_map(names, vectors[:6])))


@pytest.mark.parametrize(
    "name", ["<script>", "$x_2$", r"$\frac$", "a & b", "李小龙", "${1}{{2}}"]
)
def test_a_name_is_shown_as_it_is(name):
    svg = draw_map([name, "b", "c"], np.eye(3))
    assert name in texts(svg) and b"<script" not in svg


def test_many_or_long_names_do_not_hide_the_map():
    assert "n" * 16 + "…" in texts(draw_map(["n" * 80, "b", "c"], np.eye(3)))
    names = [f"somebody {number}" for number in range(41)]
    shown = texts(draw_map(names, np.random.default_rng(0).standard_normal((41, 4))))
    assert not set(names) & set(shown)
