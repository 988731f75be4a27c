"""Choose the input columns that a job reads and keeps, with types that all shards share. It reads no row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from batchloom.pipelines.columns.given import SOURCE, SOURCE_TYPE, partition_columns, with_partitions
from batchloom.pipelines.columns.nested import marked, with_paths
from batchloom.pipelines.columns.texts import is_chat, is_list, is_text
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError, InputError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.formats.records import merged
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.tasks.base import ColumnKind, Task

EVERYTHING = Selection()


def choose_columns(
    config: InputConfig,
    task: Task,
    shards: Sequence[Shard],
    schemas: Sequence[pa.Schema],
    selection: Selection = EVERYTHING,
) -> tuple[pa.Schema, tuple[str, ...]]:
    """Return the columns to read, with one type for all shards, and the names of those that are kept.

    A column that is kept or selected by, and that only some shards have, is null in the others; what the task reads
    must be in every shard. Raises: InputError where a column is missing, ambiguous or of an unusable type; ConfigError
    where a kept column has the name of an output column, or the selection means nothing for these columns.
    """
    wanted = [*task.input_columns(), *(config.keep_columns or ()), *selection.columns]
    alike = _alike(shards, schemas, wanted)
    names = list(dict.fromkeys(name for one in alike for name in one.fields))
    selection.check_names(names)
    files = [one.file for one in alike]
    if SOURCE in wanted and SOURCE not in names:
        field = pa.field(SOURCE, SOURCE_TYPE)
        files = [schema.append(field) for schema in files]
        alike = [replace(one, columns=one.columns.append(field)) for one in alike]
        names.append(SOURCE)
    _check_present(config, task, names, shards[0].format.naming)
    own = list(dict.fromkeys(name for schema in files for name in schema.names))
    kept = _kept(config, task, own, selection.columns)
    chosen = list(dict.fromkeys([*task.input_columns(), *kept, *selection.columns]))
    _check_once(chosen, alike)
    fields = list(shards[0].format.settled(pa.schema([_shared_field(name, alike) for name in chosen])))
    if shards[0].format.values_are_texts:
        fields = [pa.field(one.name, pa.string()) if one.name in task.input_columns() else one for one in fields]
    for name, kind in task.input_columns().items():
        _check_in_every_shard(name, alike)
        _check_kind(next(field for field in fields if field.name == name), kind)
    selection.check_types(pa.schema(fields))
    return marked(pa.schema(fields), files), kept


@dataclass(frozen=True)
class _Alike:
    """Shards of the same columns: a job may have 100,000 shards, and 2,000 columns, of a few kinds."""

    shards: list[Shard]
    file: pa.Schema
    """The columns of the files."""
    columns: pa.Schema
    """These, and those inside of them that are wanted by their paths."""

    @cached_property
    def fields(self) -> dict[str, pa.Field]:
        return {field.name: field for field in self.columns}


def _alike(shards: Sequence[Shard], schemas: Sequence[pa.Schema], wanted: Sequence[str]) -> list[_Alike]:
    """Return shards by their columns, in the order of the first of each."""
    found: dict[tuple[int, tuple[str, ...]], _Alike] = {}
    for shard, schema in zip(shards, schemas, strict=True):
        key = id(schema), partition_columns(shard.source)
        if key not in found:
            file = with_partitions(_plain(schema), shard.source)
            found[key] = _Alike([], file, with_paths(file, wanted))
        found[key].shards.append(shard)
    return list(found.values())


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return the schema without properties of the encoding only: dictionaries, views, metadata."""
    return pa.schema([(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        plain = _plain_type(kind.key_type), _plain_type(kind.item_type)
        return kind if plain == (kind.key_type, kind.item_type) else pa.map_(*plain)
    if is_list(kind):
        values = kind.value_field.with_type(_plain_type(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(values, kind.list_size)
        return pa.large_list(values) if pa.types.is_large_list(kind) else pa.list_(values)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def _check_present(config: InputConfig, task: Task, names: Sequence[str], naming: str) -> None:
    """`naming`: Format.naming."""
    missing = [
        name for name in dict.fromkeys([*task.input_columns(), *(config.keep_columns or ())]) if name not in names
    ]
    if missing and not names:
        raise InputError("The files of the input are empty: they have neither rows nor columns. Check input.paths.")
    if missing:
        above = [name for name in missing if any(f"/{name}=" in path for path in config.paths)]
        raise InputError(
            f"Columns {_quoted(missing)} are not in the input. It has: {', '.join(names)}. {naming}{' ' * bool(naming)}"
            + (f"For the partitions {_quoted(above)}, let input.paths name the folder above them. " if above else "")
            + "Set input.text_column (or the task's own columns) and input.keep_columns to some of these."
        )


def _kept(config: InputConfig, task: Task, names: Sequence[str], selected_by: Sequence[str]) -> tuple[str, ...]:
    """`names`: of columns that files have."""
    read: Mapping[str, ColumnKind] = task.input_columns()
    kept = config.keep_columns if config.keep_columns is not None else [name for name in names if name not in read]
    reserved = {field.name for field in [*task.beside(kept).output_fields(), *LEDGER_FIELDS]}
    used = dict.fromkeys([*kept, *read, *selected_by])
    clashes = [name for name in used if name in reserved and (name in kept or name == "error")]
    if clashes:
        raise ConfigError(
            f"Columns {_quoted(clashes)} of the input have names that the output gives to its own. "
            "List the others in input.keep_columns, or rename them."
        )
    return tuple(dict.fromkeys(kept))


def _check_once(chosen: Sequence[str], alike: Sequence[_Alike]) -> None:
    """Raise InputError where a shard has several columns of one name, which Parquet allows: the choice is ambiguous."""
    for one in alike:
        counts = Counter(one.columns.names)
        twice = [name for name in chosen if counts[name] > 1]
        if twice:
            raise InputError(
                f"{one.shards[0].name} has several columns of the name {_quoted(twice)}. "
                "Rename them in the file, or leave the name out of input.keep_columns and the task's columns."
            )


def _shared_field(name: str, alike: Sequence[_Alike]) -> pa.Field:
    """Return the column with a type that every shard's can be cast to: null takes the others' type, numbers widen."""
    shared = pa.schema([])
    for one in alike:
        if name in one.fields:
            own, shard = pa.schema([one.fields[name]]), one.shards[0]
            if not shard.format.has_own_types:
                shared = pa.schema([merged(shared.field(name), own.field(0))]) if shared.names else own
                continue
            try:
                shared = pa.unify_schemas([shared, own], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(
                    f"Column {name!r} holds {own.field(name).type} in {shard.name} and "
                    f"{shared.field(name).type} in the shards before it. Give all shards one type, leave the column "
                    "out of input.keep_columns, or run them as separate jobs."
                ) from error
    return shared.field(name)


def _check_in_every_shard(name: str, alike: Sequence[_Alike]) -> None:
    with_rows = [(shard.name, one) for one in alike for shard in one.shards if shard.num_rows]
    without = [shard for shard, one in with_rows if name not in one.fields]
    if without:
        num_shards = sum(len(one.shards) for one in alike)
        raise InputError(
            f"Column {name!r} is missing in {len(without)} of {num_shards} shards ({', '.join(without[:3])}"
            f"{', ...' if len(without) > 3 else ''}). Narrow input.paths, or give them the column."
        )


def _check_kind(field: pa.Field, kind: ColumnKind) -> None:
    if not _holds(field.type, kind):
        raise InputError(
            f"Column {field.name!r} holds {field.type}, not {kind.value}. "
            "Choose another column as input.text_column, or as the task's own."
        )


def _holds(found: pa.DataType, kind: ColumnKind) -> bool:
    if pa.types.is_null(found):
        return True
    if kind is ColumnKind.TEXTS:
        return is_list(found) and _holds(found.value_type, ColumnKind.TEXT)
    if kind is ColumnKind.TEXT_OR_TEXTS and is_list(found):
        return _holds(found.value_type, ColumnKind.TEXT) or is_chat(found)
    return is_text(found) or (kind is ColumnKind.VALUE and (pa.types.is_primitive(found) or pa.types.is_decimal(found)))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
