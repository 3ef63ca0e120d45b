"""Extract tasks: features of one movie chunk by one model, or of one run from the user's file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.decoding import CHUNK_TRS, chunk_rows
from hpcenc.tasks.models.catalogue import TAGS, ModelSpec, stored_layers
from hpcenc.tasks.records import Fact, UnitTask
from hpcenc.tasks.selection import FILE_LAYER

if TYPE_CHECKING:
    from hpcenc.storage.store import Store
    from hpcenc.tasks.models.extractor import Extractor


IMPORT_VERSION = 1
"""Part of the digest of features from files: raised by hand whenever reading them changes."""


def feature_arrays(
    spec: ModelSpec, n_trs: int, tag_labels: Mapping[str, Any] | None = None
) -> dict[str, ArraySpec]:
    """Arrays of one model on one run: every layer, in chunks of a movie chunk.

    Parameters
    ----------
    spec : ModelSpec
    n_trs : int
    tag_labels : mapping, optional
        What is known of the tags' names, for the attributes of their array.
    """
    return {
        layer.name: ArraySpec(
            (n_trs, layer.n_features),
            (CHUNK_TRS, layer.n_features),
            "float32",
            ("tr", f"{layer.name}_feature"),  # layers of one group may differ in width
            attributes=tag_labels if layer.name == TAGS else None,
        )
        for layer in stored_layers(spec)
    }


def file_arrays(n_trs: int, n_features: int) -> dict[str, ArraySpec]:
    """The one array of a feature file."""
    shape = (n_trs, n_features)
    return {FILE_LAYER: ArraySpec(shape, shape, "float32", ("tr", f"{FILE_LAYER}_feature"))}


def needs_frames(spec: ModelSpec) -> bool:
    """Whether a model looks at frames."""
    return spec.model != "beats"


def needs_audio(spec: ModelSpec) -> bool:
    """Whether a model hears audio."""
    return spec.model != "clip"


def deciding_values(spec: ModelSpec) -> dict[str, str | int | float]:
    """What of a spec decides features: not where a checkpoint lies, nor a setting without effect."""
    idle = {"checkpoint"}
    if spec.weights == "pretrained":
        idle |= {"seed"}
    if not needs_audio(spec):
        idle |= {"window_s", "align", "pool"}
    if spec.n_tags is None:
        idle |= {"n_tags"}
    return {name: value for name, value in asdict(spec).items() if name not in idle}


@dataclass(frozen=True, kw_only=True)
class ExtractChunk(UnitTask):
    """All layers of one model on one movie chunk.

    Attributes
    ----------
    stimulus : str
        Group of the decoded movie.
    """

    verb = "extract"
    spec: ModelSpec
    n_trs: int
    stimulus: str

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Extract, check and write all layers."""
        from hpcenc.tasks.models.windows import MovieChunk, sample_span

        rows = chunk_rows(self.unit.index, self.n_trs)
        span = sample_span(
            rows.start, rows.stop - rows.start, self.spec.tr_s, self.spec.window_s, self.spec.align
        )
        everything = slice(None)
        chunk = MovieChunk(
            first_row=rows.start,
            n_rows=rows.stop - rows.start,
            tr_s=self.spec.tr_s,
            frames=store.read(f"{self.stimulus}/frames", (rows, everything, everything, everything))
            if needs_frames(self.spec)
            else None,
            wave=_read_wave(store, f"{self.stimulus}/audio", *span) if needs_audio(self.spec) else None,
            wave_start=span[0],
        )
        layers = _extractor(self.spec).extract(chunk)
        for name, values in layers.items():
            if not np.isfinite(values).all():
                n_bad = np.sum(~np.isfinite(values))
                raise ValueError(
                    f"{self.unit}: {n_bad} values of layer {name} are not finite. "
                    f"The checkpoint of {self.spec.model} is damaged, or the movie's audio is."
                )
            store.write(f"{self.unit.group}/{name}", (rows, everything), values)
        return {"rows": rows.stop - rows.start}


@dataclass(frozen=True, kw_only=True)
class ImportFeatures(UnitTask):
    """Features of one run from a file on the TR grid."""

    verb = "import"
    path: Path
    array: str | None
    n_trs: int

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Read, check and write the features."""
        from hpcenc.storage.feature_files import read_feature_file

        values = read_feature_file(self.path, self.array, self.n_trs)
        store.write(f"{self.unit.group}/{FILE_LAYER}", (slice(None), slice(None)), values)
        return {"rows": self.n_trs}


NO_DEVICE = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that give none: unset, hidden by the user, and by SLURM."""


@lru_cache(maxsize=1)
def _extractor(spec: ModelSpec) -> Extractor:
    """The model, loaded once per worker; tasks of one model follow each other."""
    from hpcenc.tasks.models.loading import load_extractor

    return load_extractor(spec, _device())


def _device() -> str:
    """The GPU if there is one; a process that was given one never does without it in silence.

    Raises
    ------
    RuntimeError
        If a GPU was given and PyTorch cannot use it.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if given not in NO_DEVICE:
        raise RuntimeError(
            f"CUDA_VISIBLE_DEVICES={given} gives this process a GPU, but PyTorch {torch.__version__} cannot "
            "use it: the driver is older than its CUDA, or it was built without. To extract on the CPU, "
            "unset it (on SLURM: `unset CUDA_VISIBLE_DEVICES` in the profile's prologue)"
        )
    return "cpu"


def _read_wave(store: Store, path: str, start: int, stop: int) -> NDArray[np.float32]:
    """Samples of a run's audio, with zeros before its start and after its end."""
    n_samples = store.array(path).shape[0]
    inside = slice(max(start, 0), min(stop, n_samples))
    wave = store.read(path, (inside,))
    return np.pad(wave, (inside.start - start, stop - inside.stop))
