"""A streamed model holds no weights: each is read when a product needs it and freed after it. It knows no layer.

It serves for one forward of a model of any size: one weight is in memory at a time, in float32. Nothing is split, fused
or reordered, so its answers do not depend on how ranks divide a model.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from batchloom.models.checkpoints.hub import open_source
from batchloom.models.checkpoints.loading import read_checkpoint
from batchloom.models.checkpoints.pinned import PinnedModel
from batchloom.models.checkpoints.tensors import Checkpoint
from batchloom.models.checkpoints.weights import NUM_READERS, differing_copies, stored_names, tie
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.projections import CrossAttention, SelfAttention
from batchloom.models.families.table import model_class
from batchloom.models.ranks.group import SINGLE


def stream_model(uri: str | PinnedModel, architecture: str | None = None) -> LoadedModel:
    """Return a checkpoint as a model on the CPU, in float32, of which every forward reads all weights again.

    Raises: CheckpointError, which lists everything that does not fit; UnsupportedModelError.
    """
    source = open_source(uri)
    config, _, name, checkpoint = read_checkpoint(source, architecture)
    with torch.device("meta"):
        model = model_class(name)(config, SINGLE)
    tie(model, differing_copies(name, config, checkpoint, SINGLE))
    stored = stored_names(model, checkpoint)
    streamed = {
        parameter: nn.Parameter(_weight(checkpoint, stored[name], parameter.shape), requires_grad=False)
        for name, parameter in model.named_parameters()
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, streamed[parameter])
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            weights, biases = zip(*((linear.weight, linear.bias) for linear in module.linears), strict=True)
            module.fused = _concatenated(weights), _concatenated(biases)
    return model.eval()


class StreamedWeight(Tensor):
    """A weight without memory: any operator that is given it reads it first."""

    read: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], read: Callable[[], Tensor]) -> "StreamedWeight":
        place = torch.device("cpu")
        weight: StreamedWeight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=place)
        weight.read = read
        return weight

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch documents it

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # likewise
        cls, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten.detach.default:  # nn.Parameter calls it
            return arguments[0]
        arguments, keywords = tree_map_only(cls, lambda weight: weight.read(), (arguments, keywords or {}))
        return operator(*arguments, **keywords)


def _weight(checkpoint: Checkpoint, stored_name: str | None, shape: Sequence[int]) -> StreamedWeight:
    """Return a tensor of the checkpoint, or zeros. Slices of rows are read concurrently: one request alone gets a
    fraction of an object store's bandwidth."""

    def read() -> Tensor:
        with torch.inference_mode(False):  # an inference tensor could not be filled by the reader threads
            whole = torch.zeros(*shape)
        if stored_name is not None:
            step = -(-shape[0] // NUM_READERS)
            rows = [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]
            with ThreadPoolExecutor(NUM_READERS) as readers:
                list(readers.map(lambda own: checkpoint.read_into(whole[own], stored_name, own), rows))
        return whole

    return StreamedWeight(shape, read)


def _concatenated(weights: Sequence[Any]) -> StreamedWeight:
    """Return the weights concatenated along their rows."""
    shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:])
    return StreamedWeight(shape, lambda: torch.cat([weight.read() for weight in weights]))
