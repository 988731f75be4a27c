"""Fill prompts from a template with columns, such as "{title}: {body}". It knows no task and no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import ColumnKind


@dataclass(frozen=True)
class PromptTemplate:
    """A text with column names in braces; literal braces are doubled.

    Raises: ConfigError where the template has no column, or anything but a plain name in braces.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            fields = fields_of(self.text)
        except ValueError as error:
            raise ConfigError(
                f"task_options.prompt_template: {error}. Write columns as {{name}} and a brace as {{{{ or }}}}."
            ) from error
        odd = [field for field in fields if not is_plain(field) or field == "{}"]
        if odd or not fields:
            found = ", ".join(odd) if odd else "no column at all"
            raise ConfigError(
                f"task_options.prompt_template: found {found}. Write columns as plain {{name}}, such as "
                '"{title}: {body}".'
            )

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name]
        return dict.fromkeys(names, ColumnKind.VALUE)

    def fill(self, columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return one prompt a row, null where any of its columns is. `columns`: texts, in the order of self.columns."""
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
