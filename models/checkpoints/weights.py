"""Fill a model's parameters from a checkpoint's tensors: names, ties, shapes and slices. It knows no file format.

Everything that does not fit is found before the first byte of a tensor is read. A rank reads its rows. Columns are
scattered over the file, so of a tensor split by columns each rank reads 1 / size of the rows, whole, and an all-to-all
gives each its columns:

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
from batchloom.models.families.sizes import canonical
from batchloom.models.families.table import model_class
from batchloom.models.ranks.division import rank_slice
from batchloom.models.ranks.group import TensorParallel, TensorSlice

logger = logging.getLogger(__name__)

# Concurrent requests to an object store: one alone gets a fraction of the bandwidth.
NUM_READERS = 8


def fill(model: LoadedModel, checkpoint: Checkpoint, only: Collection[str] | None = None) -> None:
    """Read the model's parameters, or `only` those of some names.

    Raises: CheckpointError, which lists every tensor missing or of another shape.
    """
    stored = stored_names(model, checkpoint)

    columns: list[tuple[nn.Parameter, str]] = []
    readers = ThreadPoolExecutor(max_workers=1 if checkpoint.source.is_local else NUM_READERS)
    try:
        readings = []
        for name, parameter in model.named_parameters():
            if only is not None and name not in only:
                continue
            stored_name, held = stored[name], _slice_of(model, name, parameter)
            if stored_name is None:
                parameter.zero_()
            elif held.is_columns:
                columns.append((parameter, stored_name))
            else:
                readings.append(readers.submit(_read_rows, parameter, checkpoint, stored_name, held))
        _read_columns(columns, checkpoint, model.group, readers)
        for reading in readings:
            reading.result()
    finally:
        readers.shutdown(cancel_futures=True)


def stored_names(model: LoadedModel, checkpoint: Checkpoint) -> dict[str, str | None]:
    """Return the checkpoint's tensor name for each parameter, None where the parameter is zeros. Raises: as `fill`."""
    stored_by_name = {canonical(name): name for name in checkpoint.tensors}
    names = {name: _find(name, model, stored_by_name) for name, _ in model.named_parameters()}
    if problems := _problems(model, checkpoint, names):
        raise CheckpointError(_report(problems, model, checkpoint))
    return names


def tie(model: LoadedModel, apart: Collection[str]) -> None:
    """Make the parameters named in TIED one object, except `apart`, where the configuration ties embeddings."""
    if not model.config.tie_word_embeddings:
        return
    tied = set(model.TIED) - set(apart)
    names = [name for name, _ in model.named_parameters() if canonical(name) in tied]
    for name in names[1:]:
        _set_parameter(model, name, model.get_parameter(names[0]))


def differing_copies(architecture: str, config: ModelConfig, checkpoint: Checkpoint, group: TensorParallel) -> set[str]:
    """Return the names that the configuration ties, but under which the file holds another matrix: the file wins.

    Old .bin files hold a tied matrix under each of its names, so their values are compared, by each rank for its rows.
    Raises: OutOfStepError where another rank left.
    """
    if not config.tie_word_embeddings:
        return set()
    stored_by_name = {canonical(name): name for name in checkpoint.tensors}
    present = [name for name in model_class(architecture).TIED if name in stored_by_name]

    def is_copy(name: str) -> bool:
        first, other = stored_by_name[present[0]], stored_by_name[name]
        rows = rank_slice(checkpoint.tensors[first].num_rows, group.size, group.rank)
        return bool(group.all_reduce_min(checkpoint.equal(first, other, rows)))

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
    """Return a line for each tensor that is missing, quantized or of another shape than the whole parameter."""
    problems = []
    for name, parameter in model.named_parameters():
        expected = list(_slice_of(model, name, parameter).whole_shape)
        stored_name = stored_names[name]
        if stored_name is not None:
            tensor = checkpoint.tensors[stored_name]
            if list(tensor.shape) != expected:
                problems.append(f"{name} should be {expected}; the file has {list(tensor.shape)}")
            elif not tensor.dtype.is_floating_point and stored_name not in checkpoint.scales:
                problems.append(
                    f"{name} is stored as {tensor.dtype}, without the scales of bitsandbytes; of integers only these "
                    "are read"
                )
        elif canonical(name) not in model.ZERO_IF_ABSENT:
            problems.append(f"{name} {expected} is missing")
    return problems


def _read_rows(parameter: Tensor, checkpoint: Checkpoint, stored_name: str, held: TensorSlice) -> None:
    rows = held.rows or slice(0, held.whole_shape[0])
    num_rows = rows.stop - rows.start
    parameter[num_rows:].zero_()  # the last rank's padding of an uneven vocabulary
    checkpoint.read_into(parameter[:num_rows], stored_name, rows)


def _read_columns(
    columns: Collection[tuple[nn.Parameter, str]],
    checkpoint: Checkpoint,
    group: TensorParallel,
    readers: ThreadPoolExecutor,
) -> None:
    """Fill the parameters that are split by columns, piece by piece, in the same order on all ranks."""

    def pieces() -> Iterator[tuple[nn.Parameter, str, int, slice]]:
        for parameter, name in columns:
            rows = rank_slice(len(parameter), group.size, group.rank)
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
    """Yield the pieces in order, prefetching up to NUM_READERS of them."""
    coming = (readers.submit(checkpoint.read, name, rows) for name, rows in pieces)
    waiting = deque(islice(coming, NUM_READERS))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(islice(coming, 1))


def _slice_of(model: LoadedModel, name: str, parameter: Tensor) -> TensorSlice:
    """Return what this rank holds of a parameter's tensor: all of it, unless its module has `slices`."""
    owner, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    return module.slices()[leaf] if hasattr(module, "slices") else TensorSlice(tuple(parameter.shape))


def _find(name: str, model: LoadedModel, stored_by_name: dict[str, str]) -> str | None:
    """Return the stored name of a parameter: its own, or another name of the same tied matrix."""
    own = canonical(name)
    if own in stored_by_name:
        return stored_by_name[own]
    # An untied output head must be stored under its own name; embeddings are one matrix with several names.
    if own in model.TIED and (model.config.tie_word_embeddings or own != "lm_head.weight"):
        return next((stored_by_name[other] for other in model.TIED if other in stored_by_name), None)
    return None


def _report(problems: list[str], model: LoadedModel, checkpoint: Checkpoint) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return (
        f"The weights of {checkpoint.source.uri!r} do not fit {type(model).__name__} as config.json describes it "
        f"({len(problems)} of {len(list(model.parameters()))} tensors):\n{lines}\n"
        "Check config.json's sizes, or pass the architecture that the weights were saved from (model_options has "
        "architecture and num_labels)."
    )
