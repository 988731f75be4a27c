"""load_model: a URI to a model whose weights are where they belong. It knows no layer and no file format.

The model is built without memory, every parameter gets its place on the device in its final dtype, and each is then
filled from its slice of the file, so the peak is the model and one piece of a tensor.
"""

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.checkpoint_info import generation_defaults
from models.config import BartConfig, BloomConfig, read_config
from models.errors import CheckpointError, DeviceError
from models.families.base import LoadedModel
from models.families.encoder_decoder import CrossAttention, SelfAttention
from models.hub import open_source
from models.layers.embedding import VocabularyHead
from models.layers.linear import ColumnLinear, RowLinear
from models.parallel import Part, TensorParallel, tensor_parallel_group
from models.registry import architecture_of, model_class

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What stands before a tensor's name, depending on who saved it and around which head.
PREFIXES = ("module.", "model.", "transformer.")


def load_model(
    uri: str,
    architecture: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tensor_parallel: int = 1,
) -> LoadedModel:
    """A checkpoint as a model, ready to run.

    `uri`: a folder, an fsspec URL or hf://org/name@revision. `architecture`: by default the first of config.json's.
    `dtype`: "float32", "float16", "bfloat16", or "auto", the checkpoint's own on an accelerator and float32 on a CPU.
    `device`: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1". `tensor_parallel`: the number of
    ranks, joined by torch.distributed, that hold the model together; each reads its slices only.
    Raises CheckpointError with all that does not fit, UnsupportedModelError, DeviceError.
    """
    source = open_source(str(uri))
    raw_config = source.read_json("config.json")
    if raw_config is None:
        raise CheckpointError(
            f"Model {uri!r} has no config.json, so it is no checkpoint. Found: {', '.join(source.file_names)}."
        )
    config = read_config(raw_config, where=f"config.json of {uri!r}")
    name = architecture_of(config, architecture)
    group = tensor_parallel_group(tensor_parallel)
    place = resolve_device(device, group)
    checkpoint = Checkpoint(source)
    model = empty_model(
        name,
        config,
        group,
        place,
        resolve_dtype(dtype, place, checkpoint.dtype),
        apart=differing_copies(name, config, checkpoint),
    )
    fill(model, checkpoint)
    lay_out(model)
    model.generation_defaults = generation_defaults(raw_config, source.read_json("generation_config.json"))
    return model


def resolve_device(device: str, group: TensorParallel) -> torch.device:
    """The device of a name. Raises DeviceError where it is not there."""
    num_devices = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if num_devices else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device = {device!r} is not a device. Use 'auto', 'cpu', 'cuda' or 'cuda:1'.") from error
    if place.type == "cuda":
        index = place.index if place.index is not None else group.rank % max(1, num_devices)
        if index >= num_devices:
            raise DeviceError(f"device = {device!r} asked for; this process sees {num_devices} CUDA devices.")
        return torch.device("cuda", index)
    return place


def resolve_dtype(dtype: str, place: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of a name: "auto" keeps the checkpoint's on an accelerator and is float32 on a CPU."""
    if dtype == "auto":
        return stored if place.type != "cpu" and stored in DTYPES.values() else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"dtype = {dtype!r} is not one we have. Use 'auto', {', '.join(map(repr, DTYPES))}.")
    return DTYPES[dtype]


def empty_model(
    architecture: str,
    config: BartConfig | BloomConfig,
    group: TensorParallel,
    place: torch.device,
    dtype: torch.dtype,
    apart: Collection[str] = (),
) -> LoadedModel:
    """The model with memory for its parameters and nothing in it yet; `apart` names copies that are not tied."""
    with torch.device("meta"):
        model = model_class(architecture)(config, group)
    _tie(model, apart)
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.allocate(place, dtype)
    placed: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters are one object and stay one
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in placed:
                    memory = torch.empty(parameter.shape, device=place, dtype=dtype)
                    placed[parameter] = nn.Parameter(memory, requires_grad=False)
                setattr(module, name, placed[parameter])
    return model.eval()


def _tie(model: LoadedModel, apart: Collection[str]) -> None:
    """Makes the names of TIED one parameter, where the configuration says that they are."""
    if not model.config.tie_word_embeddings:
        return
    tied = set(model.TIED) - set(apart)
    names = [name for name, _ in model.named_parameters() if _canonical(name) in tied]
    for name in names[1:]:
        _set_parameter(model, name, model.get_parameter(names[0]))


def differing_copies(architecture: str, config: BartConfig | BloomConfig, checkpoint: Checkpoint) -> set[str]:
    """Names that the configuration ties, but of which the file holds another matrix: the file wins.

    Old .bin files hold every name of a tied matrix, so copies are compared and not just counted.
    """
    if not config.tie_word_embeddings:
        return set()
    stored_by_name = {_canonical(name): name for name in checkpoint.tensors}
    present = [name for name in model_class(architecture).TIED if name in stored_by_name]
    differing = {name for name in present[1:] if not checkpoint.equal(stored_by_name[present[0]], stored_by_name[name])}
    if differing:
        logger.warning(
            "%s says that word embeddings are tied, but holds another matrix under %s; each is loaded as it stands.",
            checkpoint.source.uri,
            ", ".join(sorted(differing)),
        )
    return differing


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def fill(model: LoadedModel, checkpoint: Checkpoint) -> None:
    """Reads the model's parameters. Raises CheckpointError that lists every tensor missing or of another shape."""
    stored_by_name = {_canonical(name): name for name in checkpoint.tensors}
    stored_names = {name: _find(name, model, stored_by_name) for name, _ in model.named_parameters()}
    if problems := _problems(model, checkpoint, stored_names):
        raise CheckpointError(_report(problems, model, checkpoint))
    for name, parameter in model.named_parameters():
        stored_name = stored_names[name]
        if stored_name is None:
            parameter.zero_()
        else:
            _read(parameter, checkpoint, stored_name, _part(model, name, parameter))
    strays = sorted(set(checkpoint.tensors) - set(stored_names.values()))
    if strays and model.group.rank == 0:
        logger.info("%d tensors of %s are not used: %s", len(strays), checkpoint.source.uri, ", ".join(strays[:8]))


def lay_out(model: LoadedModel) -> None:
    """Gives the weights the order that the processor wants. Outer modules come first: fused ones own their parts."""
    fused: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.lay_out()
            fused |= {module.k_proj, module.v_proj} | ({module.q_proj} if isinstance(module, SelfAttention) else set())
        elif isinstance(module, ColumnLinear | RowLinear | VocabularyHead) and module not in fused:
            module.lay_out()


def _problems(model: LoadedModel, checkpoint: Checkpoint, stored_names: dict[str, str | None]) -> list[str]:
    """A line for each tensor that is missing or has another shape than the model's whole, uncut parameter."""
    problems = []
    for name, parameter in model.named_parameters():
        expected = list(_part(model, name, parameter).whole_shape)
        stored_name = stored_names[name]
        if stored_name is not None:
            found = list(checkpoint.tensors[stored_name].shape)
            if found != expected:
                problems.append(f"{name} should be {expected}; the file has {found}")
        elif _canonical(name) not in model.ZERO_IF_ABSENT:
            problems.append(f"{name} {expected} is missing")
    return problems


def _read(parameter: Tensor, checkpoint: Checkpoint, stored_name: str, part: Part) -> None:
    target = parameter
    if part.where:
        num_rows = len(range(*part.where[0].indices(part.whole_shape[0])))
        target = parameter[:num_rows]
        parameter[num_rows:].zero_()  # the last rank's padding of an uneven vocabulary
    checkpoint.read_into(target, stored_name, part.where)


def _part(model: LoadedModel, name: str, parameter: Tensor) -> Part:
    """What this rank holds of a parameter's tensor: all of it, unless its module says otherwise."""
    owner, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    return module.parts()[leaf] if hasattr(module, "parts") else Part((), tuple(parameter.shape))


def _find(name: str, model: LoadedModel, stored_by_name: dict[str, str]) -> str | None:
    """The tensor for a parameter: its own name, or another name of the same matrix."""
    canonical = _canonical(name)
    if canonical in stored_by_name:
        return stored_by_name[canonical]
    # An output head that is not tied must be there under its own name; embeddings are one matrix under several.
    if canonical in model.TIED and (model.config.tie_word_embeddings or canonical != "lm_head.weight"):
        return next((stored_by_name[other] for other in model.TIED if other in stored_by_name), None)
    return None


def _canonical(name: str) -> str:
    """A tensor's name without what stands before it: model.encoder.layers.0... -> encoder.layers.0..."""
    while (prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _report(problems: list[str], model: LoadedModel, checkpoint: Checkpoint) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return (
        f"The weights of {checkpoint.source.uri!r} do not fit {type(model).__name__} as config.json describes it "
        f"({len(problems)} of {len(list(model.parameters()))} tensors):\n{lines}\n"
        "Check config.json's sizes, or pass the architecture that the weights were saved from."
    )
