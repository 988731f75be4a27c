"""Reads a parsed config.json into its family's configuration, old spellings understood. It opens no file."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from batchloom.models.errors import CheckpointError, UnsupportedModelError
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.family import Family
from batchloom.models.families.table import FAMILIES


def read_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the configuration that a parsed config.json holds; `where` names the file in errors.

    Raises UnsupportedModelError for other families, CheckpointError with all bad values of the file at once.
    """
    family = _family(raw, where)
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


def _family(raw: Mapping[str, Any], where: str) -> Family:
    model_type = raw.get("model_type")
    if model_type is None:  # files from before the key existed
        names = [str(name) for name in raw.get("architectures") or ()]
        for family in sorted(FAMILIES.values(), key=lambda family: len(family.prefix), reverse=True):
            if any(name.startswith(family.prefix) for name in names):
                return family
        raise CheckpointError(f'{where} has neither model_type nor architectures; add model_type, e.g. "bart".')
    if model_type not in FAMILIES:
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
    return {column: f"LABEL_{column}" for column in range(num_labels)}


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _check(config: ModelConfig, raw: Mapping[str, Any], where: str) -> None:
    problems = []
    for name in (field.name for field in fields(config) if field.type is int):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name} = {value!r} must be a whole number above 0")
    if not problems:
        heads = {name: getattr(config, name) for name in config.HEADS}
        problems += [
            f"{name} = {count} does not divide the width {config.width}"
            for name, count in heads.items()
            if config.width % count
        ]
    if raw.get("static_position_embeddings"):
        problems.append("static_position_embeddings = true (sinusoidal positions) is not supported")
    if sorted(config.id2label) != list(range(config.num_labels)):
        problems.append(
            f"id2label must number its labels 0 to {config.num_labels - 1}; found {sorted(config.id2label)}"
        )
    if problems:
        raise CheckpointError(f"{where} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))
