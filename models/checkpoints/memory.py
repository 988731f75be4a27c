"""Memory for a model's parameters: allocate it, fill it, and reorder the weights. It knows layers and no file format.

In int8 only a few linear layers at a time are in float32: they are read, quantized and freed, so that peak memory is
that of the quantized model and these.
"""

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn

from batchloom.models.checkpoints.tensors import Checkpoint
from batchloom.models.checkpoints.weights import fill
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.projections import CrossAttention, SelfAttention
from batchloom.models.layers.embedding import VocabularyHead
from batchloom.models.layers.int8 import quantized
from batchloom.models.layers.linear import ColumnLinear, RowLinear
from batchloom.models.malloc import return_freed_memory

LINEAR = SelfAttention | CrossAttention | ColumnLinear | RowLinear
"""What holds the weight of a product: a linear layer, or several that are computed as one."""
READ_BYTES = 256 << 20
"""Of float32 weights that are read together, before they are quantized; or one weight, where it has more."""


def allocate(
    model: LoadedModel, place: torch.device, dtype: torch.dtype, without: Collection[nn.Module] = frozenset()
) -> None:
    """Give a model's parameters memory on a device, but those of some linear layers, and do not fill it."""
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention) and not set(module.linears) <= set(without):
            module.allocate(place, dtype)
    _allocate((module for module in model.modules() if module not in without), place, dtype, dtype)


def lay_out(model: LoadedModel) -> None:
    """Reorder the weights for the processor's kernels."""
    for layer in _linear_layers(model):
        layer.lay_out()
    lay_out_heads(model)


def lay_out_heads(model: LoadedModel) -> None:
    for module in model.modules():
        if isinstance(module, VocabularyHead):
            module.lay_out()


def fill_quantized(model: LoadedModel, checkpoint: Checkpoint, place: torch.device, dtype: torch.dtype) -> None:
    """Allocate and read a model: its linear layers in int8, everything else (embeddings, norms, biases, heads) in
    `dtype`. Raises: as `fill`."""
    layers = list(_linear_layers(model))
    names = {module: name for name, module in model.named_modules()}
    linears = {linear for layer in layers for linear in _parts(layer)}
    allocate(model, place, dtype, without=linears)
    quantized_names = set(_parameters(linears, names))
    fill(model, checkpoint, {name for name, _ in model.named_parameters()} - quantized_names)
    lay_out_heads(model)
    for group in _groups(layers):
        for layer in group:
            if isinstance(layer, SelfAttention | CrossAttention):
                layer.allocate(place, dtype, torch.float32)
            else:
                _allocate([layer], place, dtype, torch.float32)
        fill(model, checkpoint, set(_parameters((part for layer in group for part in _parts(layer)), names)))
        for layer in group:
            layer.lay_out(quantized)
        return_freed_memory()  # weights in int8 lie between those in float32 that were freed


def _allocate(modules: Iterable[nn.Module], place: torch.device, dtype: torch.dtype, matrix_dtype: torch.dtype) -> None:
    placed: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters are one object and must stay one
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in placed:
                    own_dtype = matrix_dtype if parameter.dim() > 1 else dtype
                    memory = torch.empty(parameter.shape, device=place, dtype=own_dtype)
                    placed[parameter] = nn.Parameter(memory, requires_grad=False)
                setattr(module, name, placed[parameter])


def _linear_layers(model: LoadedModel) -> Iterator[LINEAR]:
    """Yield what holds the weight of a product. Outer modules come first: fused ones reorder their parts."""
    fused: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            fused |= set(module.linears)
            yield module
        elif isinstance(module, ColumnLinear | RowLinear) and module not in fused:
            yield module


def _groups(layers: Iterable[LINEAR]) -> Iterator[list[LINEAR]]:
    """Yield layers in groups of READ_BYTES at most, one layer at least."""
    group: list[LINEAR] = []
    num_bytes = 0
    for layer in layers:
        own = sum(4 * linear.weight.numel() for linear in _parts(layer))
        if group and num_bytes + own > READ_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(layer)
        num_bytes += own
    if group:
        yield group


def _parts(layer: LINEAR) -> tuple[ColumnLinear | RowLinear, ...]:
    """Return the linear layers whose weights a product has together."""
    return layer.linears if isinstance(layer, SelfAttention | CrossAttention) else (layer,)


def _parameters(linears: Iterable[nn.Module], names: dict[nn.Module, str]) -> Iterator[str]:
    for linear in linears:
        for name, _ in linear.named_parameters(recurse=False):
            yield f"{names[linear]}.{name}"
