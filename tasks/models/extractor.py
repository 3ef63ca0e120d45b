"""What the extractors of all models share: rows in, one array per layer out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.windows import MovieChunk, pooled_steps, row_windows


class Extractor(ABC):
    """A loaded model that turns movie chunks into features.

    Parameters
    ----------
    network : torch.nn.Module
        With its weights; moved to the device and set to evaluation.
    spec : ModelSpec
    device : torch.device or str
    """

    needs_frames: ClassVar[bool]
    needs_audio: ClassVar[bool]
    default_batch: ClassVar[int]
    """Rows in one pass. Fixed, because another batch changes the last bits of the results."""

    def __init__(
        self,
        network: torch.nn.Module,
        spec: ModelSpec,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.spec = spec
        self.device = torch.device(device)

    def extract(self, chunk: MovieChunk, batch: int | None = None) -> dict[str, NDArray[np.float32]]:
        """Features of every row of a chunk, of all layers in one pass.

        Parameters
        ----------
        chunk : MovieChunk
            With frames, audio or both, as ``needs_frames`` and ``needs_audio`` say.
        batch : int, optional
            Rows in one pass; by default the model's own number.

        Returns
        -------
        dict of array of float32, shape (n_rows, n_features)
            One per layer of `catalogue.stored_layers`.

        Raises
        ------
        ValueError
            If the chunk lacks the frames or audio that the model needs, or has another TR.
        """
        waves, frames = self._inputs(chunk)
        step = batch or self.default_batch
        parts = []
        with torch.inference_mode():
            for first in range(0, chunk.n_rows, step):
                rows = slice(first, first + step)
                layers = self.layers(
                    None if waves is None else torch.tensor(waves[rows], device=self.device),
                    None if frames is None else torch.tensor(frames[rows]),
                )
                parts.append({name: features.cpu().numpy() for name, features in layers.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @abstractmethod
    def layers(self, waves: torch.Tensor | None, frames: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Features of one batch.

        Parameters
        ----------
        waves : tensor of float32, shape (n_rows, n_samples), or None
            Audio windows, on the extractor's device.
        frames : tensor of uint8, shape (n_rows, height, width, 3), or None
            RGB, on the CPU.

        Returns
        -------
        dict of tensor of float32, shape (n_rows, n_features)
        """

    def _pooled_steps(self, n_steps: int) -> torch.Tensor:
        spec = self.spec
        mask = pooled_steps(n_steps, spec.tr_s, spec.window_s, spec.align, spec.pool)
        return torch.from_numpy(mask).to(self.device)

    def _inputs(self, chunk: MovieChunk) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8] | None]:
        if chunk.tr_s != self.spec.tr_s:
            raise ValueError(
                f"rows from {chunk.first_row}: expected a TR of {self.spec.tr_s} s, found {chunk.tr_s} s."
            )
        if self.needs_frames and chunk.frames is None:
            raise ValueError(
                f"rows from {chunk.first_row}: {self.spec.model} needs frames, the chunk has none."
            )
        waves = row_windows(chunk, self.spec.window_s, self.spec.align) if self.needs_audio else None
        return waves, chunk.frames if self.needs_frames else None
