"""Where feature spaces lie in the store: said by the plan, read without opening the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SpaceSource:
    """Where a feature space lies in the store.

    Attributes
    ----------
    name : str
        ``"<model>/<layer>"``.
    arrays : tuple of tuple of str
        For each run in order, the arrays that make the space.
    how : {"single", "mean", "concat"}
        How the arrays of a run are joined.
    n_features : int
    """

    name: str
    arrays: tuple[tuple[str, ...], ...]
    how: str
    n_features: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for attributes and digests."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpaceSource:
        """Inverse of `as_dict`, also after a way through JSON."""
        arrays = tuple(tuple(paths) for paths in values["arrays"])
        return cls(values["name"], arrays, values["how"], values["n_features"])
