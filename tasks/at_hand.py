"""What a worker keeps at hand between fit tasks: its device, fold operators and transformed features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache, wraps
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from hpcenc.storage.lagged import LaggedFeatures
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.tasks.backends import Backend
    from hpcenc.tasks.operators import FoldOperators

BUDGET_BYTES = 2_500_000_000
"""Operators and features that a worker keeps; memory-mapped operators cost the host nothing."""

SUB_BLOCK = 500
"""Voxels that the solver has at a time on a CPU, so that what it makes of them stays in the cache.

Not measured anew by each run: from 500 to 2,000 the times differ by less than their noise
(docs/benchmarks.md), and a choice that turns with noise would turn the last digits of results with it.
"""

DEVICE_SHARE, VOXEL_BYTES = 4, 150_000
"""On a device the same take up to a quarter of the memory that is free at the start; each needs 150 kB, with
3,655 rows and 20 alphas by the exact solver. Many at a time are what keeps a device busy."""

Kept = TypeVar("Kept")
Key = ParamSpec("Key")


def made_once(maxsize: int) -> Callable[[Callable[Key, Kept]], Callable[Key, Kept]]:
    """Cache a function as `lru_cache` does, for several task slots: one makes a value, the others wait.

    `lru_cache` alone would let each slot make its own, and two devices have two locks.
    """

    def decorate(make: Callable[Key, Kept]) -> Callable[Key, Kept]:
        cached: Callable[..., Kept] = lru_cache(maxsize)(make)
        making = Lock()

        @wraps(make)
        def get(*args: Key.args, **kwargs: Key.kwargs) -> Kept:
            with making:
                return cached(*args, **kwargs)

        return get

    return decorate


class LeastUsed(Generic[Kept]):
    """Values by key, made when asked for; the least used go when all together pass a budget.

    Parameters
    ----------
    budget_bytes : int
        The value asked for last is kept, however large.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[Hashable, tuple[Kept, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], tuple[Kept, int]]) -> Kept:
        """The value of a key; `make` gives it and its bytes, where it is not at hand."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._budget_bytes:
            self._kept.popitem(last=False)
        return self._kept[key][0]

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()


class Device:
    """The one device of a worker, which its task slots take turns at.

    Attributes
    ----------
    backend : Backend
    sub_block : int
        Voxels that the solver has at a time: a multiple of 500, by the memory that the device has free now.
    voxels_at_once : int or None
        Voxels that memory allowed to fit together; None as long as it was never refused.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.sub_block = _sub_block(backend)
        self.voxels_at_once: int | None = None
        self._turn = Lock()
        self._at_hand: LeastUsed[Any] = LeastUsed(BUDGET_BYTES)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Compute, one slot at a time: the others read and write meanwhile."""
        with self._turn, self.backend.strict_linalg():
            yield

    # All below is for the slot whose turn it is.

    def make_room(self) -> None:
        """Let go of what is at hand, after memory was refused."""
        self._at_hand.clear()
        self.backend.free()

    def operators(self, folder: Path, alpha: int | None = None) -> FoldOperators:
        """Operators of one outer fold, from their cache; of all alphas, or of the one at a place in the
        grid."""
        from hpcenc.storage.array_folder import load_arrays
        from hpcenc.tasks.operators import from_arrays, ops_to_device, restrict_to_alpha, to_arrays

        def load() -> tuple[FoldOperators, int]:
            found = from_arrays(load_arrays(folder))
            if alpha is not None:
                found = restrict_to_alpha(found, alpha)
            n_bytes = sum(values.nbytes for values in to_arrays(found).values())
            return ops_to_device(found, self.backend.to_device), n_bytes

        kept: FoldOperators = self._at_hand.get((folder, alpha), load)
        return kept

    def features(self, source: FeatureSource) -> tuple[LaggedFeatures, ...]:
        """Features of one outer fold, transformed for its weights; one for each space."""
        from hpcenc.storage.lagged import lag_features
        from hpcenc.storage.store import Store
        from hpcenc.storage.weights import standardised_features

        def transform() -> tuple[tuple[LaggedFeatures, ...], int]:
            rows = self.operators(source.operators_folder).train_rows
            scored = standardised_features(Store(source.store), source.spaces, source.operators_group)
            spaces = [lag_features(values, source.delays, source.onsets, rows) for values in scored]
            n_bytes = sum(space.products.nbytes for space in spaces)
            return tuple(_moved(space, self.backend) for space in spaces), n_bytes

        kept: tuple[LaggedFeatures, ...] = self._at_hand.get(source, transform)
        return kept


@dataclass(frozen=True)
class FeatureSource:
    """Which features weights are made from, and how they were standardised."""

    store: Path
    spaces: tuple[SpaceSource, ...]
    operators_group: str
    operators_folder: Path
    delays: tuple[int, ...]
    onsets: tuple[int, ...]


@made_once(maxsize=1)
def device(backend: str) -> Device:
    """This worker's device."""
    from hpcenc.tasks.backends import open_backend

    return Device(open_backend(backend))


def _sub_block(backend: Backend) -> int:
    if backend.device == "cpu":
        return SUB_BLOCK
    fitting = backend.memory_bytes() // DEVICE_SHARE // VOXEL_BYTES
    return max(SUB_BLOCK, fitting // SUB_BLOCK * SUB_BLOCK)


def _moved(features: LaggedFeatures, backend: Backend) -> LaggedFeatures:
    return replace(
        features,
        **{field.name: backend.to_device(getattr(features, field.name)) for field in fields(features)},
    )
