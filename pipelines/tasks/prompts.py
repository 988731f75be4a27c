"""Fill texts from a template with columns, such as "{title}: {body}". It knows no task and no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import ColumnKind


@dataclass(frozen=True)
class Template:
    """A text with column names in braces; literal braces are doubled.

    Raises: ConfigError where the template has anything but a plain name in braces, or no column though it needs one.
    """

    text: str
    option: str = "prompt_template"
    """Of `task_options`, whose value it is."""
    needs_column: bool = True

    def __post_init__(self) -> None:
        try:
            fields = fields_of(self.text)
        except ValueError as error:
            raise ConfigError(
                f"task_options.{self.option}: {error}. Write columns as {{name}} and a brace as {{{{ or }}}}."
            ) from error
        odd = [field for field in fields if not is_plain(field) or field == "{}"]
        if odd or (self.needs_column and not fields):
            found = ", ".join(odd) if odd else "no column at all"
            raise ConfigError(
                f"task_options.{self.option}: found {found}. Write columns as plain {{name}}, such as "
                '"{title}: {body}".'
            )

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name]
        return dict.fromkeys(names, ColumnKind.VALUE)

    def fill(self, columns: Sequence[pa.ChunkedArray], num_rows: int) -> pa.ChunkedArray:
        """Return one text a row, null where any of its columns is. `columns`: texts, in the order of self.columns."""
        if not columns:
            literals = "".join(literal for literal, *_ in Formatter().parse(self.text))
            return pa.chunked_array([pa.repeat(literals, num_rows)])
        values = dict(zip(self.columns, columns, strict=True))
        pieces: list[pa.ChunkedArray | pa.Scalar] = []
        for literal, name, _, _ in Formatter().parse(self.text):
            pieces.append(pa.scalar(literal, pa.string()))
            if name:
                pieces.append(values[name])
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.string()))


def fields_of(template: str) -> list[str]:
    """Return what stands in a template's braces, with them: `{title}`, `{}`, `{x:>9}`. Raises: ValueError where a brace
    is not closed."""
    return [
        "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
        for _, name, form, conversion in Formatter().parse(template)
        if name is not None
    ]


def is_plain(field: str) -> bool:
    """Return whether a field is a name or empty: formats can ask for gigabytes, attributes and indices for anything."""
    return not any(character in field for character in ".[]!:")
