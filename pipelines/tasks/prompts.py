"""Prompts from a template over columns, such as "{title}: {body}". It knows no task and no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import ColumnKind


@dataclass(frozen=True)
class PromptTemplate:
    """Text with columns in braces; braces that are meant as such are written twice."""

    text: str

    def __post_init__(self) -> None:
        try:
            fields = [field for field in Formatter().parse(self.text) if field[1] is not None]
        except ValueError as error:
            raise ConfigError(
                f"task_options.prompt_template: {error}. Write columns as {{name}} and a brace as {{{{ or }}}}."
            ) from error
        odd = [name or "" for _, name, form, conversion in fields if not name or form or conversion or _is_path(name)]
        if odd or not fields:
            found = ", ".join(f"{{{name}}}" for name in odd) if odd else "no column at all"
            raise ConfigError(
                f"task_options.prompt_template: found {found}. Write columns as plain {{name}}, such as "
                '"{title}: {body}".'
            )

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name]
        return dict.fromkeys(names, ColumnKind.VALUE)

    def fill(self, columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
        """One prompt a row; null where a column of the row is null. Columns are texts, in the order of `columns`."""
        values = dict(zip(self.columns, columns, strict=True))
        pieces: list[pa.ChunkedArray | pa.Scalar] = []
        for literal, name, _, _ in Formatter().parse(self.text):
            pieces.append(pa.scalar(literal, pa.string()))
            if name:
                pieces.append(values[name])
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.string()))


def _is_path(name: str) -> bool:
    return any(character in name for character in ".[]")
