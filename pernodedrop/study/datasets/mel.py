"""Mel spectrograms of one second of sound, with the conventions of librosa (Slaney's scale and norm)."""

import functools

import numpy as np
from scipy import fft, signal

SAMPLE_RATE = 16_000
WINDOW = 1024  # samples of a spectrum
DYNAMIC_RANGE = 80.0  # decibels below the loudest


def images(waves: np.ndarray, size: int) -> np.ndarray:
    """Spectrograms as pictures of decibels, 1 the loudest of each and 0 what is 80 dB below or less.

    Args:
        waves: (n, 16000) floats.
        size: how many bands and how many times a picture has.

    Returns:
        (n, size, size) float32, bands from low to high by times.
    """
    return np.stack([1 + decibels(power(wave, size)[:, :size]) / DYNAMIC_RANGE for wave in waves]).astype("float32")


def decibels(power: np.ndarray) -> np.ndarray:
    """Power in decibels of its maximum, in [-80, 0]; silence is 0."""
    floor = np.maximum(power, 1e-10)
    return np.maximum(10 * np.log10(floor / floor.max()), -DYNAMIC_RANGE)


def power(wave: np.ndarray, size: int) -> np.ndarray:
    """The power of one wave in `size` mel bands at every 16000 // size samples."""
    hop = SAMPLE_RATE // size
    padded = np.pad(wave.astype("float32"), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop]
    spectra = fft.rfft(frames * signal.windows.hann(WINDOW, sym=False).astype("float32"), axis=1)
    return matrix(size) @ (np.abs(spectra) ** 2).T


@functools.cache
def matrix(bands: int) -> np.ndarray:
    """The weight of each frequency in each mel band: triangles of area 1 Hz^-1 that overlap by half.

    Returns:
        (bands, 513) float32.
    """
    frequencies = fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    edges = to_hertz(np.linspace(0, to_mel(SAMPLE_RATE / 2), bands + 2))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle))
    return (np.maximum(triangles, 0) * 2 / (high - low)).astype("float32")


def to_mel(hertz: float) -> float:
    """Slaney's mel: linear up to 1000 Hz, logarithmic above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def to_hertz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
