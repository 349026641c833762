"""Simulated rooms: against mirror images made one by one, and formulas of acoustics."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt

from local_modules.augmentation import rooms
from local_modules.augmentation.rooms import image_response, simulated_responses

RATE = 16000
SIZE, SOURCE, MICROPHONE = (5.3, 4.1, 2.9), (1.2, 3.3, 1.7), (4.0, 0.9, 1.1)


def mirrored(size, source, reach, microphone):
    """Places of all images within reach and how many walls made them: the source
    mirrored at a wall, its image at another, and so on."""
    images, newest = {tuple(source): 0}, [tuple(source)]
    while newest:
        found = []
        for image in newest:
            for axis in range(3):
                for wall in (0.0, size[axis]):
                    place = list(image)
                    place[axis] = round(2 * wall - place[axis], 9)
                    place = tuple(place)
                    far = math.dist(place, microphone) > reach + 2 * max(size)
                    if place not in images and not far:
                        images[place] = images[image] + 1
                        found.append(place)
        newest = found
    return images


def test_it_is_the_sum_of_all_mirror_images():
    rt60 = 0.08
    length, width, height = SIZE
    surface = 2 * (length * width + width * height + height * length)
    # Eyring, with 0.161 s/m = 24 ln(10) / c.
    constant = 24 * math.log(10) / 343
    energy = math.exp(-constant * length * width * height / (surface * rt60))
    expected = np.zeros(round(rt60 * RATE) + 2)
    n_images = 0
    for place, n_walls in mirrored(SIZE, SOURCE, rt60 * 343, MICROPHONE).items():
        distance = math.dist(place, MICROPHONE)
        if distance < rt60 * 343:
            n_images += 1
            weight = energy ** (n_walls / 2) / (4 * math.pi * distance)
            expected[round(distance / 343 * RATE)] += weight
    found = image_response(SIZE, SOURCE, MICROPHONE, rt60, RATE)
    assert n_images > 1000
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-3, atol=1e-7)
    assert not expected[len(found) :].any()


def test_the_direct_path():
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = rng.uniform(3, 9, 3)
        source, microphone = rng.uniform(0.1, size - 0.1, (2, 3))
        response = image_response(size, source, microphone, 0.1, RATE)
        distance = math.dist(source, microphone)
        first = response.nonzero()[0][0]
        assert first == round(distance / 343 * RATE)
        if distance < 1:  # else a reflection may share the sample
            assert response[first] == pytest.approx(1 / (4 * math.pi * distance), 1e-3)


def test_source_and_microphone_may_change_places():
    one = image_response(SIZE, SOURCE, MICROPHONE, 0.2, RATE)
    other = image_response(SIZE, MICROPHONE, SOURCE, 0.2, RATE)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("rt60", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("size", [SIZE, (9.0, 7.0, 3.5)])
def test_it_dies_away_about_as_eyring_says(size, rt60):
    """By Schroeder's backward integration, from -5 to -25 dB; in boxes some sound stays
    longer than in the evenly filled rooms of the formula."""
    response = image_response(size, SOURCE, MICROPHONE, rt60, RATE)
    highpass = butter(2, 100, "highpass", fs=RATE, output="sos")
    decay = np.cumsum(sosfilt(highpass, response)[::-1] ** 2)[::-1]
    decay = 10 * np.log10(decay / decay[0] + 1e-12)
    fit = (decay < -5) & (decay > -25)
    measured = -60 / np.polyfit(np.flatnonzero(fit) / RATE, decay[fit], 1)[0]
    assert 0.9 * rt60 < measured < 1.5 * rt60


def test_rooms_are_the_same_ones_everywhere():
    rooms_once = simulated_responses(RATE)
    simulated_responses.cache_clear()
    start = time.process_time()
    again = simulated_responses(RATE)
    assert time.process_time() - start < 10  # less than a second, most of the time
    assert torch.equal(rooms_once, again)
    assert again.dtype == torch.float32
    assert len(again.unique(dim=0)) == rooms.N_ROOMS
    # The direct path is the strongest but where reflections come at one time.
    assert (again[:, 0] > 0.9).all()
    assert (again.abs().argmax(dim=1) == 0).float().mean() > 0.9
    # Nothing is left of what a room adds at 0 Hz, where all images have one sign.
    assert (again.sum(dim=1).abs() < 0.5 * again.abs().sum(dim=1)).all()
