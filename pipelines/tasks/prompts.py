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
        """Return one prompt a row, null where any of its columns is. `columns`: texts, in the order of self.columns."""
        values = dict(zip(self.columns, columns, strict=True))
        pieces: list[pa.ChunkedArray | pa.Scalar] = []
        for literal, name, _, _ in Formatter().parse(self.text):
            pieces.append(pa.scalar(literal, pa.string()))
            if name:
                pieces.append(values[name])
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.string()))


def _is_path(name: str) -> bool:
    return any(character in name for character in ".[]")
