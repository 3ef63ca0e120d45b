"""Array libraries that fits run on, chosen by name once per run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def resolve_backend(name: str) -> str:
    """The backend that ``auto`` stands for on this machine.

    torch where the kernel shows an NVIDIA device, else NumPy, whose GEMM is as fast on CPUs. Looks
    at device files only: the plan must not import torch.
    """
    if name != "auto":
        return name
    return "torch" if Path("/dev/nvidia0").exists() else "numpy"


@dataclass(frozen=True)
class Backend:
    """An array library on a device.

    Attributes
    ----------
    to_device : callable
        NumPy array (memory-mapped too) to an array of the library, without a copy where it can.
    to_host : callable
        The way back.
    """

    name: str
    device: str
    to_device: Callable[[NDArray[Any]], Any]
    to_host: Callable[[Any], NDArray[Any]]


def open_backend(name: str) -> Backend:
    """A working backend.

    Raises
    ------
    ValueError
        If there is no such backend.
    """
    if name == "numpy":
        return Backend("numpy", "cpu", np.asarray, np.asarray)
    if name == "torch":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Backend(
            "torch",
            device,
            # A copy: torch refuses to promise that it leaves memory-mapped, read-only arrays alone.
            lambda values: torch.from_numpy(np.array(values)).to(device),
            lambda values: values.cpu().numpy(),
        )
    raise ValueError(f"unknown backend {name!r}: expected numpy or torch")
