"""Activation functions by their names in config.json. It knows no layer."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def gelu_10(hidden: Tensor) -> Tensor:
    return F.gelu(hidden).clamp(-10, 10)


def sqrt_softplus(hidden: Tensor) -> Tensor:
    return F.softplus(hidden).sqrt()


def _parameter() -> nn.Parameter:
    return nn.Parameter(torch.empty(1), requires_grad=False)


class PReLU(nn.Module):
    """ReLU with a slope below zero that each layer learned (arXiv 1502.01852)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = _parameter()

    def forward(self, hidden: Tensor) -> Tensor:
        return F.prelu(hidden, self.weight)


class XIELU(nn.Module):
    """The integral of a trained ELU: a parabola above zero, an exponential below (arXiv 2411.13010)."""

    BETA, EPSILON = 0.5, -1e-6

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = _parameter(), _parameter()

    def forward(self, hidden: Tensor) -> Tensor:
        above = F.softplus(self.alpha_p) * hidden * hidden
        below = (torch.expm1(hidden.clamp(max=self.EPSILON)) - hidden) * (self.BETA + F.softplus(self.alpha_n))
        return torch.where(hidden > 0, above, below) + self.BETA * hidden


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": gelu_10,
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
    "sqrtsoftplus": sqrt_softplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}


TRAINED: dict[str, type[nn.Module]] = {"prelu": PReLU, "xielu": XIELU}


def activation(name: str) -> Activation:
    """Return the function of a name in config.json: a module where it has parameters, one for each layer.

    Raises: UnsupportedModelError, which lists the known names.
    """
    if name in TRAINED:
        return TRAINED[name]()
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation_function = {name!r} is not one we have. Known: {', '.join(sorted([*ACTIVATIONS, *TRAINED]))}."
        )
    return ACTIVATIONS[name]
