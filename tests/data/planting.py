"""BOLD with planted signals: regions of vertices that answer to two feature spaces, through an HRF at a fine
rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from hpcenc.storage.results import read_scores
from hpcenc.storage.store import Store
from hpcenc.tasks.demo.hrf import respond
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.report.sweeps import summarise_sweep

N_EACH = 120
"""Vertices of a region."""
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Region:
    """Vertices with one mix of the two spaces: the share of vision in the signal's variance, and its HRF's
    peak."""

    name: str
    vision: float
    peak_s: float
    snr: float = 1.0


REGIONS = (
    Region("visual", 1.0, 6.0),
    Region("auditory", 0.0, 4.0),
    Region("both", 0.7, 5.0),
    Region("silent", 0.0, 5.0, snr=0.0),
)
N_VERTICES = N_EACH * len(REGIONS)
SLICES = {region.name: slice(place * N_EACH, (place + 1) * N_EACH) for place, region in enumerate(REGIONS)}
MASKS = {name: np.isin(np.arange(N_VERTICES), np.r_[part]) for name, part in SLICES.items()}


def to_rows(courses: Floats, rate_hz: int) -> Floats:
    """Means over the seconds of each row."""
    return courses.reshape(-1, rate_hz, courses.shape[1]).mean(axis=1)


def unit(values: Floats) -> Floats:
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


@dataclass
class Planted:
    """What was planted in each run: the mixed courses before the HRF, by row, and the responses to them."""

    weights: Mapping[str, Floats]
    """For ``vision`` and ``audio``, (n_features, `N_VERTICES`)."""
    rate_hz: int
    strength: float = 1.0
    """Times the regions' ratios of signal to noise variance."""
    before: list[Floats] = field(default_factory=list)
    responses: list[Floats] = field(default_factory=list)

    def bold(self, fine: Mapping[str, Floats], rng: np.random.Generator, noise_only: bool = False) -> Floats:
        """BOLD of one more run, (n_trs, `N_VERTICES`), from features at the fine rate, (n_samples,
        n_features)."""
        n_trs = len(fine["vision"]) // self.rate_hz
        bold = lfilter([1], [1, -0.4], rng.standard_normal((n_trs, N_VERTICES)), axis=0)
        before, response = np.empty_like(bold), np.zeros_like(bold)
        for region in REGIONS:
            part = SLICES[region.name]
            mixed = [
                np.sqrt(share) * unit(fine[space] @ self.weights[space][:, part])
                for space, share in (("vision", region.vision), ("audio", 1 - region.vision))
            ]
            course = mixed[0] + mixed[1]
            answered = respond(course, region.peak_s, self.rate_hz)[self.rate_hz // 2 :: self.rate_hz]
            before[:, part], response[:, part] = to_rows(course, self.rate_hz), answered
            if region.snr and not noise_only:
                bold[:, part] += (
                    np.sqrt(self.strength * region.snr) * unit(answered) * bold[:, part].std(axis=0)
                )
        self.before.append(before)
        self.responses.append(response)
        return np.asarray(100 + bold)

    def lag(self, region: str) -> int:
        """TRs at which a region's courses correlate most with their own responses."""
        part = SLICES[region]

        def correlation(lag: int) -> float:
            found = []
            for before, response in zip(self.before, self.responses, strict=True):
                early, late = unit(before[: len(before) - lag, part]), unit(response[lag:, part])
                found.append((early * late).mean())
            return float(np.mean(found))

        return max(range(15), key=correlation)


@dataclass(frozen=True)
class Simulated:
    """A fitted study of one subject, s1, and what was planted in it."""

    store: Store
    planted: Planted

    def r(self, feature_set: str, region: str) -> Floats:
        """r of a region's vertices with a main fit."""
        return read_scores(self.store, f"fits/{feature_set}/s1").r[0, 0, SLICES[region]]

    def peak(self, feature_set: str, region: str) -> float:
        """Single delay of the largest mean r in a region."""
        sweep = summarise_sweep(read_scores(self.store, f"delays/{feature_set}/s1"), MASKS)
        return sweep.values[int(np.argmax(sweep.curves[region]))]

    def check_delays(self, feature_set: str, region: str) -> None:
        """The curve of single delays peaks where the planted courses answer most, and vertices choose that
        delay, each within a TR."""
        sweep = summarise_sweep(read_scores(self.store, f"delays/{feature_set}/s1"), MASKS)
        planted = self.planted.lag(region)
        assert abs(self.peak(feature_set, region) - planted) <= 1
        assert abs(np.nanmedian(sweep.best_values[SLICES[region]]) - planted) <= 1


def above_chance(store: Store, groups: Sequence[str], part: slice, subject: str = "s1") -> float:
    """Share of vertices that have a best variant, over several sweeps of a subject."""
    shares = []
    for group in groups:
        scores = read_scores(store, f"{group}/{subject}")
        best = choose_variants(scores.more["cv"], scores.r, scores.chance).best[part]
        shares.append(np.mean(best >= 0))
    return float(np.mean(shares))


def no_effect(r: Floats) -> bool:
    """Whether a mean r is 0 within four standard errors."""
    return bool(abs(r.mean()) <= 4 * r.std(ddof=1) / np.sqrt(len(r)))
