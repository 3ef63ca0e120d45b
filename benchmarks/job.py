"""One thing to measure, as plain values that travel from the parent to its fresh process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OURS = ("exact", "fast")


@dataclass(frozen=True)
class Job:
    """Fit the first vertices of the problem, or a part of that.

    Attributes
    ----------
    solver : str
        A name of `peers.PEERS`, or one of hpcenc's: ``exact``, ``fast``. All below is for hpcenc's only.
    task : {"fit", "choose", "operators"}
        ``choose`` is the choice of alphas alone, beside the machine's sgemm peak; ``operators`` makes
        and caches them.
    block : int, optional
        Vertices of BOLD that are read at a time, as one subject's or one task's; all if left out.
    weights : {"keep", "drop", "store"}
        Kept in one array, dropped shard by shard, or streamed to Zarr.
    operators : {"make", "load"}
        Load the cached ones, as a further subject does.
    n_alphas : int
        In place of 20, over the same range.
    delay : int, optional
        One delay in place of all.
    general : bool
        Never go through the eigenvectors of a kernel of few features.
    n_processes : int
        Processes that share the vertices equally.
    """

    solver: str
    n_vertices: int
    task: Literal["fit", "choose", "operators"] = "fit"
    block: int | None = None
    weights: Literal["keep", "drop", "store"] = "keep"
    operators: Literal["make", "load"] = "make"
    n_alphas: int = 20
    delay: int | None = None
    general: bool = False
    n_processes: int = 1

    def __str__(self) -> str:
        defaults = {name: field.default for name, field in self.__dataclass_fields__.items()}
        others = (
            f"{name.replace('_', ' ')} {value}"
            for name, value in vars(self).items()
            if name not in ("solver", "n_vertices") and value != defaults[name]
        )
        return ", ".join([f"{self.solver} {self.n_vertices:,} vertices", *others])
