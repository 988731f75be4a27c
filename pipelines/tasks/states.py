"""Columns of hidden states: vectors, states of each token, attention weights; and how large a row's may be.

A row's numbers travel flat, one output after the other; the number of its tokens tells their shapes.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchloom.models.single_pass.state_outputs import POOLINGS, StateOutput, StateOutputs
from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import RowError
from batchloom.pipelines.tasks.base import Answered, AnswerSize, Prepared, lists_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOKENS = 1 << 24  # of a row, where neither the model nor the job says
FLIGHT_BYTES = 4  # of a number between replica and part, whatever the column's dtype


@dataclass(frozen=True, kw_only=True)
class StateColumns:
    """The columns of a job that asks for hidden states."""

    asked: StateOutputs
    names: tuple[str, ...]
    """Of the columns, one for each output."""
    dtype: str
    """float32 or float16."""
    max_row_bytes: int
    """Of a row's numbers."""
    max_tokens: int | None
    """Of a row; None: any number."""

    @property
    def has_tokens(self) -> bool:
        """Whether there are states of each token, which have the column `tokens` beside them."""
        return not set(self.asked.outputs) <= set(POOLINGS)

    def fields(self) -> list[pa.Field]:
        """Return the columns, and `tokens` after them."""
        fields = []
        for name, output in self._outputs:
            whole = self._kind
            for _ in self.asked.shape(output, 1):
                whole = pa.list_(whole)
            fields.append(pa.field(name, whole))
        return [*fields, pa.field("tokens", pa.list_(pa.int32()))] if self.has_tokens else fields

    def num_bytes(self, num_tokens: int) -> int:
        """Return the bytes of a row of so many tokens, without offsets of lists."""
        return self.asked.num_values(num_tokens) * (2 if self.dtype == "float16" else 4)

    @property
    def longest(self) -> int:
        """The most tokens with which a row is not too large."""
        lengths = range(1, (self.max_tokens or MOST_TOKENS) + 1)
        return bisect_right(lengths, self.max_row_bytes, key=self.num_bytes)

    @property
    def size(self) -> AnswerSize | None:
        """How much room the answers take on their way; None where that is little."""
        if not self.has_tokens:
            return None
        of_row = FLIGHT_BYTES * self.asked.num_values(self.longest)
        return AnswerSize(of_token=-(-of_row // self.longest), of_row=of_row)

    def without_large(self, prepared: Prepared) -> Prepared:
        """Return what is prepared without rows whose states are too large, which are errors."""
        lengths = pc.list_value_length(prepared.requests["token_ids"]).to_numpy()
        is_large = lengths > self.longest
        if not is_large.any():
            return prepared
        rows = prepared.requests["row"].to_numpy()
        errors = {int(row): self._too_large(int(n)) for row, n in zip(rows[is_large], lengths[is_large], strict=True)}
        num_input, num_truncated = prepared.num_input_tokens.copy(), prepared.num_truncated_tokens.copy()
        num_input[list(errors)] = num_truncated[list(errors)] = 0
        return replace(
            prepared,
            requests=prepared.requests.filter(pa.array(~is_large)),
            num_input_tokens=num_input,
            num_truncated_tokens=num_truncated,
            errors={**prepared.errors, **errors},
        )

    def results_of(
        self, found: Sequence[Mapping[StateOutput, "Tensor"]], token_ids: Sequence[Sequence[int]]
    ) -> dict[str, pa.Array]:
        """Return what a pass gave as columns of RESULT_SCHEMA."""
        flat = [np.concatenate([own[output].numpy().ravel() for output in self.asked.outputs]) for own in found]
        offsets = np.cumsum([0, *map(len, flat)])
        numbers = np.concatenate([np.zeros(0, np.float32), *flat])
        values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(numbers, pa.float32()))
        results: dict[str, pa.Array] = {"values": values}
        return results | {"indices": pa.array(token_ids, pa.list_(pa.int32()))} if self.has_tokens else results

    def of(self, answered: Answered) -> list[pa.Array]:
        """Return the values of `fields`, null for rows without results."""
        values = answered.results["values"].combine_chunks().cast(pa.list_(self._kind))
        token_ids = answered.results["indices"].combine_chunks()
        made: dict[str, dict[int, pa.Array]] = {field.name: {} for field in self.fields()}
        for number, row in enumerate(answered.results["row"].to_pylist()):
            flat = values[number].values
            if self.has_tokens:
                made["tokens"][row] = token_ids[number].values
            for name, output in self._outputs:
                shape = self.asked.shape(output, len(token_ids[number]) if self.has_tokens else 1)
                made[name][row] = _nested(flat[: prod(shape)], shape)
                flat = flat[prod(shape) :]
        return [lists_of(made[field.name], answered.num_rows, field.type.value_type) for field in self.fields()]

    @property
    def _outputs(self) -> Iterable[tuple[str, StateOutput]]:
        """Columns and what they hold."""
        return zip(self.names, self.asked.outputs, strict=True)

    @property
    def _kind(self) -> pa.DataType:
        return pa.float16() if self.dtype == "float16" else pa.float32()

    def _too_large(self, num_tokens: int) -> RowError:
        return RowError(
            "prepare",
            "too_large",
            f"{num_tokens} tokens have {self.num_bytes(num_tokens):,} bytes of {', '.join(self.names)}; "
            f"{self.max_row_bytes:,} are taken at most, those of {self.longest} tokens. Set task_options.max_length, "
            "ask for less, or raise task_options.max_row_bytes.",
        )


def _nested(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return numbers in C order as lists: 6 of shape [3, 2] as 3 lists of 2."""
    for length in reversed(shape[1:]):
        flat = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, length), pa.int32()), flat)
    return flat
