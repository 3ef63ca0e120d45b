"""The haemodynamic response of the simulated areas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import gamma

HRF_S = 32.0
"""Seconds after which the response is taken as over."""


def hrf(peak_s: float, rate_hz: float) -> NDArray[np.float64]:
    """Double-gamma haemodynamic response to an impulse.

    Parameters
    ----------
    peak_s : float
        Peak of the first gamma density, in seconds; the second one's, a sixth as strong, is 10 s later.
    rate_hz : float
        Samples per second.

    Returns
    -------
    array of shape (round(HRF_S * rate_hz),)
        Value at the middle of each sample; the sum is 1.

    References
    ----------
    Glover (1999), NeuroImage 9, 416-429.
    """
    times = np.arange(0.5, round(HRF_S * rate_hz)) / rate_hz
    response: NDArray[np.float64] = gamma.pdf(times, peak_s + 1) - gamma.pdf(times, peak_s + 11) / 6
    response /= response.sum()
    return response


def respond(course: NDArray[np.float64], peak_s: float, rate_hz: float) -> NDArray[np.float64]:
    """Response to a course.

    Parameters
    ----------
    course : array of shape (n_samples, ...)
        Strength over each sample; 0 before the first.
    peak_s, rate_hz : float
        See `hrf`.

    Returns
    -------
    array of shape (n_samples, ...)
        Response at the END of each sample: it knows that whole sample and nothing later.
    """
    kernel = hrf(peak_s, rate_hz).reshape(-1, *[1] * (course.ndim - 1))
    response: NDArray[np.float64] = fftconvolve(course, kernel, axes=0)[: len(course)]
    return response
