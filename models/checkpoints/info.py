"""A checkpoint's description, from its small files and hashes. It imports no torch, so a job's driver can call it.

The hashes are part of a job's fingerprint: sha256 over the contents of the weight files, and of the tokenizer's files.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchloom.models.checkpoints.hub import ModelSource, open_source
from batchloom.models.checkpoints.pickled import shapes_of_pickle
from batchloom.models.checkpoints.pinned import DECIDING, PinnedFile, PinnedModel
from batchloom.models.checkpoints.weight_file import ITEM_BYTES, HeaderEntry, WeightFile
from batchloom.models.errors import CheckpointError
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.family import Family
from batchloom.models.families.reading import read_config, says_labels, with_counted_labels
from batchloom.models.families.sizes import Shapes, check_sizes, num_labels_of
from batchloom.models.families.table import architecture_of, family_of
from batchloom.models.families.tensor_names import unread, words_for_unread
from batchloom.models.generation.absent_options import ABSENT, RESOURCE_HINTS, is_neutral
from batchloom.models.generation.params import OPTIONS, SPECIAL_TOKENS

# Fields of config.json that decide what is generated: ours, and those of transformers that params refuse.
GENERATION_FIELDS = (*OPTIONS, *ABSENT)

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FLOAT_DTYPES = (*FLOATS, "F64")  # of tensors in safetensors: the first three are computed in
ENDLESS = 1e20  # a model_max_length above it stands for none: transformers writes 1e30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a job needs to know of a checkpoint before anything is started."""

    architecture: str  # the class that load_model uses by default
    config: ModelConfig
    weights_hash: str  # sha256, hexadecimal
    tokenizer_hash: str  # sha256, hexadecimal
    generation_defaults: dict[str, Any]  # overlaid by task_specific_params of the task
    prefix: str  # text that the checkpoint expects before each input; bart-large-cnn: one space
    max_positions: int | None  # the longest sequence in tokens; None where there is no limit
    model_max_length: int | None  # tokens that the tokenizer truncates at where it is asked to; None: no such length
    dtype: str  # of most bytes of the weights: "float32", "bfloat16" or "float16"; float32 for any other
    folder: Path  # holds config.json and the tokenizer's files
    pinned: PinnedModel  # what is to be loaded: these files and no others
    notes: tuple[str, ...] = ()  # what a user should know of how the files are read

    @property
    def family(self) -> Family:
        """The record of its family."""
        return family_of(self.config)

    @property
    def has_encoder(self) -> bool:
        """Whether its class has an encoder beside its decoder."""
        return self.config.encoder_of(self.architecture) is not None


def describe(
    uri: str, task: str | None = None, changes: Mapping[str, Any] | None = None, strict: bool = False
) -> CheckpointInfo:
    """Read a checkpoint's small files and hash the weights; `task` selects from config.json's task_specific_params.

    `changes` stand over config.json's values, here and where `pinned` is loaded: {"architectures": ["BartForCausalLM"],
    "num_labels": 2}. `strict`: tensors that no class of the family reads are refused, and not only named in `notes`.

    Raises: CheckpointError where there is no such folder, no config.json or no weights, or where weights do not fit;
    UnsupportedModelError where the architecture or a configuration value is not supported.
    """
    changes = changes or {}
    source = open_source(str(uri))
    small = [PinnedFile(name, hashlib.sha256(content).hexdigest()) for name, content in _small_files(source)]
    pinned = PinnedModel(source.uri, tuple(small), changes, strict)
    source = replace(source, pinned=pinned)  # what is read below is what was hashed
    raw_config = source.read_config()
    config = read_config(raw_config, where=f"config.json of {uri!r}")
    architecture = architecture_of(config, next(iter(changes.get("architectures") or ()), None))
    task_params = _task_params(raw_config, task, f"config.json of {uri!r}")
    defaults = generation_defaults(raw_config, source.read_json("generation_config.json"))
    defaults |= {key: value for key, value in task_params.items() if key != "prefix" and value is not None}
    files = weight_files(source)
    headers = headers_of(files)
    shapes = shapes_of(files, headers)
    num_labels = None if shapes is None else num_labels_of(architecture, shapes)
    before, config = config, with_counted_labels(config, raw_config, num_labels)
    if shapes is not None:
        check_sizes(config, architecture, shapes, where=f"Model {source.uri!r}")
    notes = notes_on_weights(before, config, shapes, source)
    if not says_labels(raw_config):
        changes = {**changes, "num_labels": config.num_labels}  # what is planned is what is loaded
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashlib releases the GIL
        weights = list(pool.map(WeightFile.pin, files))
    fingerprinted = family_of(config).tokenizer.fingerprinted
    return CheckpointInfo(
        architecture=architecture,
        config=config,
        weights_hash=_hash_of(weights),
        tokenizer_hash=_hash_of(file for file in small if file.name in fingerprinted),
        generation_defaults=defaults,
        prefix=str(task_params.get("prefix") or raw_config.get("prefix") or ""),
        max_positions=config.max_positions,
        model_max_length=_model_max_length(source),
        dtype=_dtype(headers, raw_config),
        folder=source.folder,
        pinned=replace(pinned, files=(*small, *weights), changes=changes),
        notes=notes,
    )


def _model_max_length(source: ModelSource) -> int | None:
    """Return tokenizer_config.json's length, also in its old spelling. Raises: CheckpointError where it is none."""
    found = source.read_json("tokenizer_config.json") or {}
    length = found.get("model_max_length", found.get("max_len"))
    if length is None:
        return None
    if not isinstance(length, int | float) or isinstance(length, bool) or not length >= 1:
        raise CheckpointError(
            f"Model {source.uri!r}: tokenizer_config.json has model_max_length = {length!r:.80}, which is no number of "
            "tokens. Correct it, or take it out."
        )
    return int(length) if length < ENDLESS else None


def _small_files(source: ModelSource) -> Iterator[tuple[str, bytes]]:
    for name in DECIDING:
        content = source.read_small(name)
        if content is not None:
            yield name, content


def _task_params(raw_config: Mapping[str, Any], task: str | None, where: str) -> dict[str, Any]:
    of_tasks = raw_config.get("task_specific_params") or {}
    params = (of_tasks.get(task) or {}) if isinstance(of_tasks, Mapping) else of_tasks
    if not isinstance(params, Mapping):
        raise CheckpointError(f"{where}: task_specific_params must hold an object for each task; found {params!r:.80}.")
    return dict(params)


def headers_of(files: Sequence[WeightFile]) -> dict[str, HeaderEntry]:
    """Return what the headers of safetensors files tell of their tensors, and check that no file is cut.

    Raises: CheckpointError.
    """
    headers: dict[str, HeaderEntry] = {}
    for file in files:
        if file.name.endswith(".safetensors"):
            headers |= file.header()
        else:
            file.check_whole()
    return headers


def shapes_of(files: Sequence[WeightFile], headers: Mapping[str, HeaderEntry]) -> Shapes | None:
    """Return the tensors' shapes, without their bytes.

    None where one is not known without torch, as in a .bin that was saved before torch 1.6; loading compares them.
    """
    shapes = {name: entry.shape for name, entry in headers.items()}
    for file in files:
        if file.name.endswith(".safetensors"):
            continue
        with file.open() as content:
            found = shapes_of_pickle(content)
        if found is None:
            return None
        shapes |= found
    return shapes


def notes_on_weights(
    before: ModelConfig, config: ModelConfig, shapes: Shapes | None, source: ModelSource
) -> tuple[str, ...]:
    """Return what a user should know of the weights: labels that were counted, tensors that nothing reads.

    `before`: the configuration without what was counted. Its layers are checked: their names are made here. `shapes`:
    None where they are not known. Raises: CheckpointError where there are such tensors, and the plan is strict.
    """
    notes = []
    if config.num_labels != before.num_labels:
        named = ", ".join(config.id2label.values())
        notes.append(
            f"config.json names no labels; the weights have {config.num_labels}: {named:.200}. "
            "model_options.id2label gives them names."
        )
    if shapes is not None and (strays := unread(config, shapes)):
        notes.append(words_for_unread(strays))
        if source.pinned is not None and source.pinned.is_strict:
            raise CheckpointError(f"Model {source.uri!r} is refused, as model_options.strict is true: {notes[-1]}")
    return tuple(notes)


def _dtype(headers: Mapping[str, HeaderEntry], raw_config: Mapping[str, Any]) -> str:
    """Return what loading takes for dtype "auto" on a GPU. Tensors of .bin files are not known: config.json tells."""
    if not headers:
        named = str(raw_config.get("dtype") or raw_config.get("torch_dtype")).removeprefix("torch.")
        return named if named in FLOATS.values() else "float32"
    num_bytes = Counter[str]()
    for entry in headers.values():
        if entry.dtype in FLOAT_DTYPES:
            num_bytes[entry.dtype] += math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    most = max(num_bytes, key=lambda dtype: num_bytes[dtype], default="F32")
    return FLOATS.get(most, "float32")


def generation_defaults(raw_config: Mapping[str, Any], raw_generation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how a checkpoint wants to generate; null counts as unset.

    Where generation_config.json exists only the ids of special tokens are filled in from config.json. transformers 5.23
    fills in none: there a decoder begins with bos where that file names no start token, and goes on to its length where
    it names no end token. What changes tokens and is not ours stays in, for GenerationParams.resolve to refuse. What
    changes none (hints for speculative decoding, keys that transformers does not know either) is left out, with a
    warning that names it.
    """
    names = GENERATION_FIELDS if raw_generation is None else SPECIAL_TOKENS
    defaults = {name: raw_config[name] for name in names if raw_config.get(name) is not None}
    if raw_generation is None:
        if raw_config.get("force_bos_token_to_be_generated") and "forced_bos_token_id" not in defaults:
            defaults["forced_bos_token_id"] = raw_config.get("bos_token_id")  # the old spelling
        _warn("config.json", {name: value for name, value in raw_config.items() if name in RESOURCE_HINTS})
        return defaults
    _warn("generation_config.json", {n: value for n, value in raw_generation.items() if n not in GENERATION_FIELDS})
    return defaults | {name: raw_generation[name] for name in GENERATION_FIELDS if raw_generation.get(name) is not None}


def _warn(file_name: str, ignored: Mapping[str, Any]) -> None:
    """Name the options that are ignored, other than those whose values ask for nothing."""
    asked = {name: value for name, value in ignored.items() if value is not None and not is_neutral(name, value)}
    if asked:
        listed = ", ".join(f"{name} = {value!r}" for name, value in asked.items())
        logger.warning("%s sets %s: not options we have, and ignored, since they change no token", file_name, listed)


def weight_files(source: ModelSource) -> list[WeightFile]:
    """Open the files that hold the weights.

    Raises: CheckpointError as weight_file_names, and where they are not those that were pinned.
    """
    names = weight_file_names(source)
    if source.pinned is not None:
        others = [file.name for file in source.pinned.files if file.name not in DECIDING]
        for name in sorted(set(others) ^ set(names)) if others else ():
            source.pinned.check(name, WeightFile(source, name).sha256() if name in names else None)
    return [WeightFile(source, name) for name in names]


def weight_file_names(source: ModelSource) -> list[str]:
    """Return the files that hold the weights: safetensors before .bin, a sharded index before a single file.

    Raises: CheckpointError where there are none, or an index names files that are missing.
    """
    for index_name, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        if index_name in source.file_names:
            return _sharded(source, index_name)
        if single in source.file_names:
            return [single]
    raise CheckpointError(
        f"Model {source.uri!r} has no weights: expected model.safetensors or pytorch_model.bin, or an index of either. "
        f"Found: {', '.join(source.file_names)}.{source.advice}"
    )


def _sharded(source: ModelSource, index_name: str) -> list[str]:
    weight_map = (source.read_json(index_name) or {}).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"Model {source.uri!r}: {index_name} has no weight_map of files. Copy the file again.")
    files = sorted(set(weight_map.values()))
    if missing := [name for name in files if name not in source.file_names]:
        raise CheckpointError(
            f"Model {source.uri!r}: {index_name} names {len(files)} files; absent: {', '.join(missing)}. Copy them too."
        )
    return files


def _hash_of(files: Iterable[PinnedFile]) -> str:
    """Return one hash over the names and contents of files."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        total.update(f"{file.name}\0{file.sha256}\n".encode())
    return total.hexdigest()
