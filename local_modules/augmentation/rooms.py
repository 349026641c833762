"""Simulated rooms, by the image method."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import butter, sosfilt
from torch.nn.utils.rnn import pad_sequence

SPEED_OF_SOUND = 343.0  # m/s, at 20 °C
N_ROOMS = 200
RT60 = 0.1, 0.6  # s
LENGTH = 3.0, 10.0  # m, and the width
HEIGHT = 2.5, 4.0  # m
TO_WALL = 0.5  # m, minimum distance of the speaker and of the microphone
CUTOFF = 100.0  # Hz


def image_response(
    size: Sequence[float],
    source: Sequence[float],
    microphone: Sequence[float],
    rt60: float,
    sample_rate: int,
) -> np.ndarray:
    """Impulse response of an empty box by the image method (Allen and Berkley, "Image
    method for efficiently simulating small-room acoustics", JASA 65, 1979).

    A reflection is the direct sound of a mirror image of the source, attenuated by the
    reflection factor of each wall in between. All walls have the same factor, from the
    reverberation time by Eyring's formula. Delays are rounded to samples.

    Arguments
    ---------
    size : sequence of float
        Length, width and height, in m.
    source, microphone : sequence of float
        Their positions, in m from one corner.
    rt60 : float
        Reverberation time, in s; also the duration of response computed.
    sample_rate : int
        Sample rate, in Hz.

    Returns
    -------
    numpy.ndarray
        The response, [time]: 1 / (4 pi r) after r metres of direct path.

    Example
    -------
    >>> response = image_response((4, 3, 2.5), (1, 1, 1), (2, 1, 1), 0.2, 16000)
    >>> first = response.nonzero()[0][0]
    >>> print(first, f"{response[first]:.4f}", f"{1 / (4 * np.pi):.4f}")
    47 0.0796 0.0796
    """
    length, width, height = size
    volume = length * width * height
    surface = 2 * (length * width + width * height + height * length)
    # Eyring: rt60 = 24 ln(10) V / (-c S ln(1 - absorption)); the factor is the root of
    # 1 - absorption, which is an energy.
    log_factor = -12 * math.log(10) * volume / (SPEED_OF_SOUND * surface * rt60)
    reach = SPEED_OF_SOUND * rt60
    squares, reflections = [], []
    for wall, here, there in zip(size, source, microphone, strict=True):
        n = math.ceil(reach / (2 * wall)) + 1
        rooms = np.arange(-n, n + 1)
        # Behind an odd number of walls, the image of the room is mirrored.
        distance = 2 * wall * rooms[:, np.newaxis] + (here - there, -here - there)
        crossed = np.stack([abs(2 * rooms), abs(2 * rooms - 1)], axis=1)
        near = abs(distance) < reach
        squares.append(distance[near].astype(np.float32) ** 2)
        reflections.append(crossed[near].astype(np.float32))

    def of_all_images(x, y, z):
        return (x[:, np.newaxis, np.newaxis] + y[:, np.newaxis] + z).ravel()

    distance = of_all_images(*squares)
    heard = distance < reach**2
    distance = np.sqrt(distance[heard])
    level = np.exp(log_factor * of_all_images(*reflections)[heard])
    delay = np.rint(distance * (sample_rate / SPEED_OF_SOUND)).astype(np.int64)
    return np.bincount(delay, level / (4 * np.pi * distance)).astype(np.float32)


@functools.cache
def simulated_responses(sample_rate: int) -> torch.Tensor:
    """Responses of random rooms, always the same ones, by the image method.

    Arguments
    ---------
    sample_rate : int
        Sample rate, in Hz.

    Returns
    -------
    torch.Tensor
        [rooms, time], each from the direct path on.
    """
    rng = np.random.default_rng(0)
    # All images have the same sign, so their sum is too strong at the lowest
    # frequencies; Allen and Berkley remove these as well.
    highpass = butter(2, CUTOFF, "highpass", fs=sample_rate, output="sos")
    responses = []
    for _ in range(N_ROOMS):
        size = rng.uniform(*np.transpose([LENGTH, LENGTH, HEIGHT]))
        source, microphone = rng.uniform(TO_WALL, size - TO_WALL, (2, 3))
        response = image_response(
            size, source, microphone, rng.uniform(*RT60), sample_rate
        )
        direct = response.nonzero()[0][0]
        response = sosfilt(highpass, response[direct:] / response[direct])
        responses.append(torch.from_numpy(response).float())
    return pad_sequence(responses, batch_first=True)
