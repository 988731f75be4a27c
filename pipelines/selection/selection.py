"""A selection tells which rows of the input are answered: those of a sample for which an expression is true.

It gives a mask over some rows of a file, and knows files that have no such row by their places alone. Whether a row is
chosen depends on its file's path, its number in it and its values, and on no other row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.columns.given import partitions
from batchloom.pipelines.columns.texts import as_text, is_bytes, readable
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.selection.grammar import parse
from batchloom.pipelines.selection.mask import Flags
from batchloom.pipelines.selection.meaning import check_names, expression_of, mask_of
from batchloom.pipelines.selection.partitions import is_excluded
from batchloom.pipelines.selection.sample import sampled
from batchloom.pipelines.selection.tree import Node, names_in


@dataclass(frozen=True)
class Selection:
    """What chooses rows. Picklable: it is sent to the workers, which make of its text what planning has checked."""

    where: str | None = None
    """An expression over columns; None where it chooses all."""
    sample: float | None = None
    """The share of the rows that are looked at; None for all."""

    @staticmethod
    def of(config: InputConfig) -> "Selection":
        """Raises: ConfigError where `input.where` is no expression."""
        selection = Selection(config.where, config.sample)
        _ = selection.columns
        return selection

    def __bool__(self) -> bool:
        return self.where is not None or self.sample is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "sample": self.sample}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which rows are answered, JSON-ready."""
        return {name: value for name, value in vars(self).items() if name in ("where", "sample") and value is not None}

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Those that the expression reads."""
        return () if self._tree is None else tuple(dict.fromkeys(name.name for name in names_in(self._tree)))

    @cached_property
    def _excluded(self) -> dict[tuple[tuple[str, str | None], ...], bool]:
        """Whether files with these values are excluded: many have the same."""
        return {}

    @cached_property
    def _expressions(self) -> "dict[pa.Schema, pc.Expression]":
        """By the types of the columns: all rows of a file, and mostly of all files, have the same."""
        return {}

    @cached_property
    def _tree(self) -> Node | None:
        return None if self.where is None else parse(self.where)

    def check_names(self, there: Sequence[str]) -> None:
        """Raise ConfigError where the expression names a column that is not there."""
        if self.where is not None and self._tree is not None:
            check_names(self.where, self._tree, there)

    def check_types(self, schema: pa.Schema) -> None:
        """Raise ConfigError where the expression means nothing for columns of these types."""
        if self.where is not None and self._tree is not None:
            expression_of(self.where, self._tree, self._texts(schema))

    def excludes(self, source: Source) -> bool:
        """Return whether no row of a file is chosen, by the values of its Hive partitions.

        Those of a table have types, and are looked at as other columns are.
        """
        if self.where is None or self._tree is None or source.partitions is not None:
            return False
        values = tuple((name, value) for name, value in partitions(source).items() if name in self.columns)
        if values not in self._excluded:
            self._excluded[values] = is_excluded(self.where, self._tree, dict(values))
        return self._excluded[values]

    def words(self, num_rows: int, num_excluded: int) -> str:
        """Return a sentence on what is chosen of so many rows that are looked at, and as many that are not; empty where
        all are."""
        if not self:
            return ""
        names = " and ".join(f"input.{name}" for name in self.settings)
        excluded = f" {num_excluded:,} more are in files that their partitions leave out." if num_excluded else ""
        return f"{names}: some of {num_rows:,} rows are chosen, as they are read.{excluded}"

    def sampled(self, spans: Sequence[Span]) -> Flags:
        """Return which of the spans' rows are in the sample."""
        if self.sample is None:
            return np.ones(sum(span.num_rows for span in spans), bool)
        return np.concatenate([sampled(span.shard, span.start, span.stop, self.sample) for span in spans])

    def where_true(self, rows: pa.Table) -> tuple[Flags, dict[int, RowError]]:
        """Return for which rows the expression is true, and those for which that cannot be told and why.

        `rows` have its columns. Raises: pa.ArrowException where the expression cannot be computed.
        """
        if self.where is None or self._tree is None:
            return np.ones(len(rows), bool), {}
        schema = self._texts(pa.schema([rows.schema.field(name) for name in self.columns]))
        columns, unclear = [], dict[int, RowError]()
        for field in schema:
            column = rows[field.name]
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                column, bad = readable(as_text(column))
                column = column.cast(field.type)
                message = (
                    f"column {field.name!r}, which input.where asks for, holds bytes that are no UTF-8 in this row"
                )
                unclear |= dict.fromkeys(bad, RowError("read", "not_utf8", message))
            columns.append(column)
        if schema not in self._expressions:
            self._expressions[schema] = expression_of(self.where, self._tree, schema)
        is_true = mask_of(pa.table(columns, schema), self._expressions[schema])
        return pc.fill_null(is_true, False).to_numpy(), unclear

    def _texts(self, schema: pa.Schema) -> pa.Schema:
        """Return the expression's columns, bytes as texts."""
        own = [schema.field(name).remove_metadata() for name in self.columns]
        return pa.schema([field.with_type(pa.string()) if is_bytes(field.type) else field for field in own])


def with_errors(rows: pa.Table, unclear: dict[int, RowError]) -> pa.Table:
    """Return the rows with these errors, where they have none."""
    if not unclear:
        return rows
    before = rows["error"].to_pylist()
    errors = [error or (vars(unclear[row]) if row in unclear else None) for row, error in enumerate(before)]
    return rows.drop_columns(["error"]).append_column(ERROR_FIELD, pa.array(errors, ERROR_TYPE))
