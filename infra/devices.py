"""Where models run: one answer for every stage, from the settings and the machine."""

from typing import Literal

from data.errors import BadInput
from infra.settings import settings


def torch_device() -> Literal["cuda", "cpu"]:
    """Return the device that models of this process run on.

    Raises:
        BadInput: the settings want CUDA and there is none.
    """
    import torch

    wanted, there = settings().device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise BadInput(
            "STILLHOUSE_DEVICE=cuda on a machine without CUDA",
            "a GPU that torch can see",
            "unset it, or install torch for CUDA",
        )
    return "cuda" if there and wanted != "cpu" else "cpu"
