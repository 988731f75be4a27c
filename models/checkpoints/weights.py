"""Puts a checkpoint's tensors into a model's parameters: names, ties, shapes and slices. It knows no file format.

All that does not fit is found before the first byte of a tensor is read. A rank reads its rows. Columns lie scattered
over the file, so of a tensor cut by columns each rank reads as many whole rows, and they exchange what they hold:

    file      2 ranks                      afterwards
    a b c d   rank 0 reads a b c d         rank 0   a b   rank 1   c d
    e f g h   rank 1 reads e f g h                  e f            g h
"""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from torch import Tensor, nn

from batchloom.models.checkpoints.tensors import Checkpoint
from batchloom.models.errors import CheckpointError
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.table import model_class
from batchloom.models.ranks.division import run
from batchloom.models.ranks.group import Part, TensorParallel

logger = logging.getLogger(__name__)

# What stands before a tensor's name, depending on who saved it and around which head.
PREFIXES = ("module.", "model.", "transformer.")
# Requests to an object store at a time: one alone gets a fraction of the bandwidth.
NUM_READERS = 8


def fill(model: LoadedModel, checkpoint: Checkpoint) -> None:
    """Reads the model's parameters. Raises CheckpointError that lists every tensor missing or of another shape."""
    stored = stored_names(model, checkpoint)

    columns: list[tuple[nn.Parameter, str]] = []
    readers = ThreadPoolExecutor(max_workers=1 if checkpoint.source.is_local else NUM_READERS)
    try:
        readings = []
        for name, parameter in model.named_parameters():
            stored_name, part = stored[name], _part(model, name, parameter)
            if stored_name is None:
                parameter.zero_()
            elif part.is_columns:
                columns.append((parameter, stored_name))
            else:
                readings.append(readers.submit(_read_rows, parameter, checkpoint, stored_name, part))
        _read_columns(columns, checkpoint, model.group, readers)
        for reading in readings:
            reading.result()
    finally:
        readers.shutdown(cancel_futures=True)
    strays = sorted(set(checkpoint.tensors) - set(stored.values()))
    if strays and model.group.rank == 0:
        logger.info("%d tensors of %s are not used: %s", len(strays), checkpoint.source.uri, ", ".join(strays[:8]))


def stored_names(model: LoadedModel, checkpoint: Checkpoint) -> dict[str, str | None]:
    """The checkpoint's tensor for each parameter, None where it is zeros. Raises CheckpointError as `fill` does."""
    stored_by_name = {_canonical(name): name for name in checkpoint.tensors}
    names = {name: _find(name, model, stored_by_name) for name, _ in model.named_parameters()}
    if problems := _problems(model, checkpoint, names):
        raise CheckpointError(_report(problems, model, checkpoint))
    return names


def tie(model: LoadedModel, apart: Collection[str]) -> None:
    """Makes the names of TIED one parameter, where the configuration says that they are."""
    if not model.config.tie_word_embeddings:
        return
    tied = set(model.TIED) - set(apart)
    names = [name for name, _ in model.named_parameters() if _canonical(name) in tied]
    for name in names[1:]:
        _set_parameter(model, name, model.get_parameter(names[0]))


def differing_copies(architecture: str, config: ModelConfig, checkpoint: Checkpoint, group: TensorParallel) -> set[str]:
    """Names that the configuration ties, but of which the file holds another matrix: the file wins.

    Old .bin files hold every name of a tied matrix, so copies are compared and not just counted, by each rank in part.
    """
    if not config.tie_word_embeddings:
        return set()
    stored_by_name = {_canonical(name): name for name in checkpoint.tensors}
    present = [name for name in model_class(architecture).TIED if name in stored_by_name]

    def is_copy(name: str) -> bool:
        first, other = stored_by_name[present[0]], stored_by_name[name]
        rows = run(checkpoint.tensors[first].num_rows, group.size, group.rank)
        return bool(group.least(checkpoint.equal(first, other, rows)))

    differing = {name for name in present[1:] if not is_copy(name)}
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


def _problems(model: LoadedModel, checkpoint: Checkpoint, stored_names: dict[str, str | None]) -> list[str]:
    """A line for each tensor that is missing, quantized or of another shape than the model's whole parameter."""
    problems = []
    for name, parameter in model.named_parameters():
        expected = list(_part(model, name, parameter).whole_shape)
        stored_name = stored_names[name]
        if stored_name is not None:
            tensor = checkpoint.tensors[stored_name]
            if list(tensor.shape) != expected:
                problems.append(f"{name} should be {expected}; the file has {list(tensor.shape)}")
            elif not tensor.dtype.is_floating_point:  # its scale lies elsewhere, if anywhere
                problems.append(f"{name} is stored as {tensor.dtype}, quantized; we read floating point alone")
        elif _canonical(name) not in model.ZERO_IF_ABSENT:
            problems.append(f"{name} {expected} is missing")
    return problems


def _read_rows(parameter: Tensor, checkpoint: Checkpoint, stored_name: str, part: Part) -> None:
    rows = part.rows or slice(0, part.whole_shape[0])
    num_rows = rows.stop - rows.start
    parameter[num_rows:].zero_()  # the last rank's padding of an uneven vocabulary
    checkpoint.read_into(parameter[:num_rows], stored_name, rows)


def _read_columns(
    columns: Collection[tuple[nn.Parameter, str]],
    checkpoint: Checkpoint,
    group: TensorParallel,
    readers: ThreadPoolExecutor,
) -> None:
    """Fills parameters that hold columns, piece by piece in one order on all ranks."""

    def pieces() -> Iterator[tuple[nn.Parameter, str, int, slice]]:
        for parameter, name in columns:
            rows = run(len(parameter), group.size, group.rank)
            for piece in checkpoint.pieces(name, rows):
                yield parameter, name, piece.start - rows.start, piece

    read = _ahead(readers, checkpoint, ((name, piece) for _, name, _, piece in pieces()))
    for (parameter, _, first, _), values_MF in zip(pieces(), read, strict=True):
        placed_MF = values_MF.to(parameter.device, parameter.dtype)
        from_RMC = group.exchange(placed_MF.unflatten(1, (group.size, -1)).transpose(0, 1))
        parameter.unflatten(0, (group.size, -1))[:, first : first + len(values_MF)] = from_RMC


def _ahead(
    readers: ThreadPoolExecutor, checkpoint: Checkpoint, pieces: Iterable[tuple[str, slice]]
) -> Iterator[Tensor]:
    """The pieces in their order, a few of them read while another is in use."""
    coming = (readers.submit(checkpoint.read, name, rows) for name, rows in pieces)
    waiting = deque(islice(coming, NUM_READERS))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(islice(coming, 1))


def _part(model: LoadedModel, name: str, parameter: Tensor) -> Part:
    """What this rank holds of a parameter's tensor: all of it, unless its module says otherwise."""
    owner, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    return module.parts()[leaf] if hasattr(module, "parts") else Part(tuple(parameter.shape))


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
