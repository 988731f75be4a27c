"""Reads a parsed config.json into its family's configuration, old spellings understood. It opens no file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from batchloom.models.errors import CheckpointError, UnsupportedModelError
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.family import Family
from batchloom.models.families.quantized import refuse_quantized
from batchloom.models.families.table import FAMILIES

MAX_LABELS = 1_000_000  # names are made for classes without one


def read_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the configuration that a parsed config.json holds; `where` names the file in errors.

    Raises UnsupportedModelError for other families, CheckpointError with all bad values of the file at once.
    """
    family = _family(raw, where)
    refuse_quantized(raw, where)
    if problems := _wrong_shapes(raw):
        raise CheckpointError(_cannot_be_used(where, problems))
    eos_token_ids = _as_tuple(_lookup(raw, "eos_token_id", family))
    values: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": tuple(raw.get("architectures") or ()),
        "eos_token_id": eos_token_ids[0] if eos_token_ids else None,
        "eos_token_ids": eos_token_ids,
        "id2label": _labels(raw, family),
    }
    for field in fields(family.config):
        if field.name in values:
            continue
        value = _lookup(raw, field.name, family)
        if value is not None or field.default is MISSING:
            values[field.name] = value
    config = family.config(**values)
    _check(config, raw, where)
    return config


def with_counted_labels(config: ModelConfig, raw: Mapping[str, Any], num_labels: int | None) -> ModelConfig:
    """Return the configuration with as many labels as the head's tensor has rows, where config.json names none.

    transformers leaves id2label out where there are two labels, and then means two of every family.
    """
    if num_labels is None or num_labels == config.num_labels or says_labels(raw):
        return config
    return replace(config, id2label=_numbered(num_labels))


def says_labels(raw: Mapping[str, Any]) -> bool:
    """Return whether a config.json names its labels, or their number."""
    return any(raw.get(key) for key in ("id2label", "label2id", "num_labels", "_num_labels"))


def _numbered(num_labels: int) -> dict[int, str]:
    return {column: f"LABEL_{column}" for column in range(num_labels)}


def _wrong_shapes(raw: Mapping[str, Any]) -> list[str]:
    """Return a line for each list or mapping of the file that is something else."""
    problems = []
    names = raw.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        problems.append(f"architectures = {names!r:.80} must be a list of class names")
    number = raw.get("num_labels")
    if number is not None and not (_is_whole(number) and 0 <= number <= MAX_LABELS):
        problems.append(f"num_labels = {number!r:.80} must be a whole number up to {MAX_LABELS}")
    for name, is_column in (("id2label", lambda key, _: key), ("label2id", lambda _, value: value)):
        labels = raw.get(name)
        if labels is None:
            continue
        pairs = labels.items() if isinstance(labels, Mapping) else [("no object", None)]
        if not all(str(is_column(key, value)).isdecimal() for key, value in pairs):
            problems.append(f"{name} = {labels!r:.80} must be an object of labels and their whole numbers")
    return problems


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _family(raw: Mapping[str, Any], where: str) -> Family:
    model_type = raw.get("model_type")
    if model_type is None:  # files from before the key existed
        named = raw.get("architectures")
        names = [str(name) for name in named] if isinstance(named, list) else []
        for family in sorted(FAMILIES.values(), key=lambda family: len(family.prefix), reverse=True):
            if any(name.startswith(family.prefix) for name in names):
                return family
        raise CheckpointError(f'{where} has neither model_type nor architectures; add model_type, e.g. "bart".')
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type = {model_type!r} is not one we have. Known: {', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def _lookup(raw: Mapping[str, Any], name: str, family: Family) -> Any:
    """The value of a field: its own key, else an old spelling, else the family's default; null counts as absent."""
    for key in (name, *family.config.SPELLINGS.get(name, ())):
        if raw.get(key) is not None:
            return raw[key]
    return family.defaults.get(name)


def _labels(raw: Mapping[str, Any], family: Family) -> dict[int, str]:
    """Classes by column: id2label, else label2id turned round, else LABEL_0 .. LABEL_n as the reference names them.

    Also as there, num_labels counts where it disagrees with the names.
    """
    names = raw.get("id2label") or {column: label for label, column in (raw.get("label2id") or {}).items()}
    if names and raw.get("num_labels") in (None, len(names)):
        return dict(sorted((int(column), str(label)) for column, label in names.items()))
    num_labels = raw.get("num_labels") or raw.get("_num_labels") or family.defaults.get("num_labels", 2)
    return _numbered(num_labels)


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _check(config: ModelConfig, raw: Mapping[str, Any], where: str) -> None:
    problems = []
    for field in fields(config):
        wanted, accepts = _KINDS.get(field.type, ("", None))
        value = getattr(config, field.name)
        if accepts is not None and not accepts(value):
            problems.append(f"{field.name} = {value!r:.80} must be {wanted}")
    if not problems:
        heads = {name: getattr(config, name) for name in config.HEADS}
        problems += [
            f"{name} = {count} does not divide the width {config.width}"
            for name, count in heads.items()
            if config.width % count
        ]
    if raw.get("slow_but_exact") and (raw.get("pretraining_tp") or 1) > 1:
        problems.append(
            f"slow_but_exact = true with pretraining_tp = {raw['pretraining_tp']!r:.80} is not supported: the "
            "reference then leaves out the biases of two projections of each layer. Set slow_but_exact to false, as "
            "BLOOM's own files have it"
        )
    if raw.get("static_position_embeddings"):
        problems.append("static_position_embeddings = true (sinusoidal positions) is not supported")
    if sorted(config.id2label) != list(range(config.num_labels)):
        problems.append(
            f"id2label must number its labels 0 to {config.num_labels - 1}; found {sorted(config.id2label)}"
        )
    if problems:
        raise CheckpointError(_cannot_be_used(where, problems))


def _cannot_be_used(where: str, problems: Sequence[str]) -> str:
    return f"{where} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems)


# What a field of each type accepts. A text in place of a switch would count as true.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number above 0", lambda value: _is_whole(value) and value > 0),
    int | None: ("a whole number or null", lambda value: value is None or _is_whole(value)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    float: ("a number above 0", lambda value: isinstance(value, int | float) and 0 < value < math.inf),
    str: ("a text", lambda value: isinstance(value, str)),
    str | None: ("a text or null", lambda value: value is None or isinstance(value, str)),
    tuple[int, ...]: ("a whole number, or a list of them", lambda value: all(map(_is_whole, value))),
}
