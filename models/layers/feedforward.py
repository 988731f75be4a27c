"""Activation functions by their names in config.json. It knows no layer."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.errors import UnsupportedModelError

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(hidden: Tensor) -> Tensor:
    """Compute GELU by its tanh approximation (arXiv 1606.08415), with which BLOOM was trained."""
    return F.gelu(hidden, approximate="tanh")


def quick_gelu(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(1.702 * hidden)


def squared_relu(hidden: Tensor) -> Tensor:
    return F.relu(hidden).square()


def laplace(hidden: Tensor, mean: float = 0.707107, deviation: float = 0.282095) -> Tensor:
    return 0.5 * (1.0 + torch.erf((hidden - mean) / (deviation * math.sqrt(2.0))))


def identity(hidden: Tensor) -> Tensor:
    return hidden


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": F.hardswish,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": identity,
    "mish": F.mish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": squared_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Activation:
    """Return the function of a name in config.json. Raises: UnsupportedModelError, which lists the known names."""
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation_function = {name!r} is not one we have. Known: {', '.join(sorted(ACTIVATIONS))}."
        )
    return ACTIVATIONS[name]
