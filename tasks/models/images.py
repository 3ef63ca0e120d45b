"""Movie frames as the vision models take them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, normalize, resize

IMAGE_SIZE = 224


def normalised_frames(
    frames: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Centre crops of frames, normalised per colour channel.

    Parameters
    ----------
    frames : tensor of uint8, shape (n_frames, height, width, 3)
        RGB, on the CPU. Resized first (PIL, bicubic, antialiased) unless the shorter side
        is 224.
    mean, std : three floats
        Of the colour channels on a scale of 0 to 1.
    device : torch.device or str
        Where the result lies.

    Returns
    -------
    tensor of float32, shape (n_frames, 3, 224, 224)
        Bit-equal to the transforms of CLIP and CAV-MAE on the CPU.
    """
    if min(frames.shape[1:3]) != IMAGE_SIZE:
        frames = torch.stack([_resize(frame) for frame in frames])
    crops = center_crop(frames.permute(0, 3, 1, 2), [IMAGE_SIZE, IMAGE_SIZE]).to(device)
    return normalize(crops.float() / 255, mean=list(mean), std=list(std))


def _resize(frame: torch.Tensor) -> torch.Tensor:
    image = resize(Image.fromarray(frame.numpy()), IMAGE_SIZE, interpolation=InterpolationMode.BICUBIC)
    return torch.from_numpy(np.array(image))
