"""Sizes and seeds of a demo study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and seeds of a demo study.

    Raises
    ------
    ValueError
        If there is no subject, fewer than 2 runs, or another number of run lengths than runs.
    """

    n_runs: int = 4
    n_trs: int | tuple[int, ...] = 180
    """TRs of every run, or of each one."""
    tr_s: float = 1.0
    n_subjects: int = 3
    seed: int = 0
    """Of movies and BOLD."""
    rest_s: float = 8.0
    clip_s: float = 25.0
    snr: float = 1.0
    """Variance of the planted signal over that of the noise."""
    noise_rho: float = 0.4
    """Correlation of the noise of neighbouring TRs."""
    n_layers: int = 4
    """Transformer layers of the untrained models."""
    audio_window_s: float = 4.0
    model_seed: int = 0

    def __post_init__(self) -> None:
        if self.n_runs < 2 or self.n_subjects < 1:
            raise ValueError(
                f"demo of {self.n_runs} runs and {self.n_subjects} subjects: "
                "expected at least 2 runs and 1 subject."
            )
        if isinstance(self.n_trs, tuple) and len(self.n_trs) != self.n_runs:
            raise ValueError(
                f"demo of {self.n_runs} runs: expected one number of TRs, or one for each run, "
                f"found {self.n_trs}."
            )

    @property
    def runs(self) -> dict[str, int]:
        """TRs of each run, by its name."""
        n_trs = self.n_trs if isinstance(self.n_trs, tuple) else (self.n_trs,) * self.n_runs
        return {f"MOVIE{number}": count for number, count in enumerate(n_trs, start=1)}

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the subjects."""
        digits = max(2, len(str(self.n_subjects)))
        return tuple(f"demo{number:0{digits}}" for number in range(1, self.n_subjects + 1))

    @property
    def note(self) -> str:
        """What every report of the study says first."""
        return (
            f"SIMULATED: planted responses in noise, and untrained models (seed {self.model_seed}). "
            "Nothing here was measured in a brain; planted.json says what was planted where."
        )
