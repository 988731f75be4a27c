"""Reads a whole input as a job does, unit by unit, without Ray: each row with where it comes from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.planning.shards import Shard, find_shards, sources_of
from batchloom.pipelines.planning.units import Size, parts_of, units_of
from batchloom.pipelines.stages.read import Stretch
from batchloom.pipelines.stages.reader import Reader
from tests.pipelines.columns.test_choose import TASK


def input_of(path: str | Path, **options: Any) -> InputConfig:
    return InputConfig(paths=(str(path),), **options)


def rows_of(path: str | Path, unit_rows: int = 3, **options: Any) -> pa.Table:
    """The rows of an input in the order of its units, which do not overlap and leave out none, with `_source`."""
    config = input_of(path, **options)
    shards, schemas = find_shards(config)
    names = dict.fromkeys(name for schema in schemas for name in schema.names)
    config = replace(config, keep_columns=config.keep_columns or (*names, "_source"))
    schema, kept = choose_columns(config, TASK, shards, schemas)
    columns = pa.schema([schema.field(name) for name in kept])
    reader = Reader(columns, config.storage_options, config.paths[0], format=shards[0].format)
    return pa.concat_tables(read(reader, shards, unit_rows))


def read(reader: Reader, shards: list[Shard], unit_rows: int) -> list[pa.Table]:
    by_name = {shard.name: shard for shard in shards}
    tables = []
    for part in parts_of(shards, Size(2 * unit_rows, 1 << 30)):
        units = list(units_of(part, [(0, part.num_rows)], by_name, Size(unit_rows, 1 << 30)))
        sources = sources_of((span for unit in units for span in unit.spans), by_name)
        stretch = Stretch.from_json(Stretch(sources, units).to_json())  # as it travels to the workers
        for table in reader.tables(stretch.sources, [unit.spans for unit in stretch.units]):
            if isinstance(table, Exception):
                raise table
            tables.append(table)
    return tables
