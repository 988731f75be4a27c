"""load_model: load a checkpoint into a model on its device. It knows no layer and no file format.

The model is built on the meta device, every parameter is allocated on its device in its final dtype, then filled from
its slice of the file, and last weights are reordered for the processor. So peak memory is the model and one tensor; in
int8 the model and a few layers (memory.py).
"""

import logging
import weakref
from collections.abc import Collection
from typing import Any

import torch

from batchloom.models.checkpoints.hub import ModelSource, open_source
from batchloom.models.checkpoints.info import generation_defaults, notes_on_weights
from batchloom.models.checkpoints.memory import allocate, fill_quantized, lay_out
from batchloom.models.checkpoints.pinned import PinnedModel
from batchloom.models.checkpoints.tensors import Checkpoint
from batchloom.models.checkpoints.weights import differing_copies, fill, stored_names, tie
from batchloom.models.errors import DeviceError
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.reading import read_config, with_counted_labels
from batchloom.models.families.sizes import check_depth, num_labels_of
from batchloom.models.families.table import architecture_of, model_class
from batchloom.models.layers.int8 import computes_int8
from batchloom.models.layers.layout import computes_in
from batchloom.models.ranks.calls import Progress
from batchloom.models.ranks.connection import FollowerStarter
from batchloom.models.ranks.division import check_ranks
from batchloom.models.ranks.group import SINGLE, Collectives, TensorParallel
from batchloom.models.ranks.processes import FollowerProcesses

logger = logging.getLogger(__name__)

_DEVICES = "Use 'auto', 'cpu', 'cuda' or 'cuda:1'."
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8 = "int8"


@torch.inference_mode(False)  # weights made in a caller's inference mode could not be filled by reader threads
def load_model(
    uri: str | PinnedModel,
    architecture: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tensor_parallel: int = 1,
    follower_starter: FollowerStarter | None = None,
) -> LoadedModel:
    """Load a checkpoint as a model, ready to run.

    `uri`: a folder, an fsspec URL or hf://org/name@revision; or `CheckpointInfo.pinned`, so that no files but the
    described ones are loaded. `architecture`: by default the first of config.json's.
    `dtype`: "float32", "float16", "bfloat16", or "auto", the checkpoint's own on a GPU and float32 on a CPU; "int8", on
    CPUs alone: linear layers in int8, and all else in bfloat16 (float32 where oneDNN has no bfloat16 here).
    `device`: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1". `tensor_parallel`: the number of ranks that
    hold the model together, each on a device of its own. The caller is the leader, rank 0; the others are processes
    started here, or by `follower_starter` on other nodes. Each reads its own slices only, and ends with the caller.

    Raises: CheckpointError, which lists everything that does not fit; UnsupportedModelError; DeviceError.
    """
    if tensor_parallel == 1:
        return load_for_rank(uri, architecture, dtype, resolve_device(device, SINGLE), SINGLE)
    place = resolve_device(device, TensorParallel(size=tensor_parallel) if follower_starter is None else SINGLE)
    check_ranks(read_configuration(open_source(uri))[0], tensor_parallel)
    followers = FollowerProcesses(
        tensor_parallel,
        {
            "uri": uri,
            "architecture": architecture,
            "dtype": dtype,
            "device": device,
            "num_threads": torch.get_num_threads(),
        },
        follower_starter,
    )
    try:
        followers.collectives = Collectives(followers.store, 0, tensor_parallel, place, followers.host)
        followers.join()
        group = TensorParallel(rank=0, size=tensor_parallel, collectives=followers.collectives, followers=followers)
        model = load_for_rank(uri, architecture, dtype, place, group)
        followers.wait_for(Progress.LOADED)
    except BaseException as error:
        followers.end_after(error)
        raise
    weakref.finalize(model, followers.close)
    return model


def load_for_rank(
    uri: str | PinnedModel, architecture: str | None, dtype: str, place: torch.device, group: TensorParallel
) -> LoadedModel:
    """Load one rank's slices of a checkpoint's model. Raises: as load_model."""
    source = open_source(uri)
    config, raw_config, name, checkpoint = read_checkpoint(source, architecture, is_told=group.rank == 0)
    model = meta_model(name, config, group, apart=differing_copies(name, config, checkpoint, group))
    stored_names(model, checkpoint)  # raises where a tensor does not fit, before there is memory for it
    if dtype == INT8:
        fill_quantized(model, checkpoint, place, dtype_beside_int8(place))
        checkpoint.check_unchanged()
    else:
        allocate(model, place, resolve_dtype(dtype, place, checkpoint.dtype))
        fill(model, checkpoint)
        checkpoint.check_unchanged()
        lay_out(model)
    model.generation_defaults = generation_defaults(raw_config, source.read_json("generation_config.json"))
    return model


def read_checkpoint(
    source: ModelSource, architecture: str | None, is_told: bool = True
) -> tuple[ModelConfig, dict[str, Any], str, Checkpoint]:
    """Return the configuration as the weights complete it, config.json, the class to load, and the weights.

    `is_told`: notes on the weights are logged. Raises: CheckpointError, UnsupportedModelError.
    """
    config, raw_config = read_configuration(source)
    name = architecture_of(config, architecture)
    checkpoint = Checkpoint(source)
    shapes = {stored: tensor.shape for stored, tensor in checkpoint.tensors.items()}
    check_depth(config, name, shapes, where=f"Model {source.uri!r}")
    before, config = config, with_counted_labels(config, raw_config, num_labels_of(name, shapes))
    notes = notes_on_weights(before, config, shapes, source)
    for note in notes if is_told else ():
        logger.warning("%s: %s", source.uri, note)
    return config, raw_config, name, checkpoint


def read_configuration(source: ModelSource) -> tuple[ModelConfig, dict[str, Any]]:
    """Return config.json, parsed into a configuration and raw. Raises: CheckpointError, UnsupportedModelError."""
    raw_config = source.read_config()
    return read_config(raw_config, where=f"config.json of {source.uri!r}"), raw_config


def resolve_device(device: str, group: TensorParallel) -> torch.device:
    """Return the device that a rank of the group uses. Raises: DeviceError where it is unknown or not available."""
    num_devices = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if num_devices else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device = {device!r} is not a device. {_DEVICES}") from error
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"device = {device!r} is not one that this runs on. {_DEVICES}")
    if place.type == "cuda":
        if not num_devices:
            raise DeviceError(
                f"device = {device!r} asked for; torch sees no CUDA device here. Use device = 'cpu', or see that the "
                "driver works (nvidia-smi) and that torch is built for CUDA."
            )
        if group.size > 1 and (place.index is not None or group.size > num_devices):
            raise DeviceError(
                f"tensor_parallel = {group.size} with device = {device!r}: each rank needs a device of its own; this "
                f"process sees {num_devices}. Use device = 'cuda' and at most so many ranks, or device = 'cpu'."
            )
        index = place.index if place.index is not None else group.rank % max(1, num_devices)
        if index >= num_devices:
            raise DeviceError(f"device = {device!r} asked for; this process sees {num_devices} CUDA devices.")
        return torch.device("cuda", index)
    return place


def resolve_dtype(dtype: str, place: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the dtype of a name; "auto" is the checkpoint's on a GPU and float32 on a CPU. Raises: DeviceError."""
    if dtype == "auto":
        return stored if place.type != "cpu" and stored in DTYPES.values() else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"dtype = {dtype!r} is not one we have. Use 'auto', {', '.join(map(repr, (*DTYPES, INT8)))}.")
    return DTYPES[dtype]


def dtype_beside_int8(place: torch.device) -> torch.dtype:
    """Return the dtype of all that an int8 model does not compute in integers. Raises: DeviceError where it cannot."""
    if place.type != "cpu":
        raise DeviceError(
            f"dtype = 'int8' with device = {place.type!r}: int8 is computed on CPUs alone. Use dtype = 'bfloat16' or "
            "'auto' there, or device = 'cpu'."
        )
    if not computes_int8():
        raise DeviceError(
            "dtype = 'int8': this processor or this build of torch has no exact int8 products (oneDNN with VNNI or "
            "AMX). Use dtype = 'bfloat16' or 'float32'."
        )
    return torch.bfloat16 if computes_in(torch.bfloat16) else torch.float32


def empty_model(
    architecture: str,
    config: ModelConfig,
    group: TensorParallel,
    place: torch.device,
    dtype: torch.dtype,
    apart: Collection[str] = (),
) -> LoadedModel:
    """Return the model with its parameters allocated and not filled; `apart` names copies that are not to be tied."""
    model = meta_model(architecture, config, group, apart)
    allocate(model, place, dtype)
    return model


def meta_model(
    architecture: str, config: ModelConfig, group: TensorParallel, apart: Collection[str] = ()
) -> LoadedModel:
    """Return the model without memory for its parameters; `apart` names copies that are not to be tied."""
    with torch.device("meta"):
        model = model_class(architecture)(config, group)
    tie(model, apart)
    return model.eval()
