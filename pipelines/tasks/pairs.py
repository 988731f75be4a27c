"""Build pairs of texts from their tokens, so that each text is encoded once for all its pairs. It knows no task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.tasks.base import Prepared, request_table
from batchloom.pipelines.tasks.length import InputLength, too_long
from batchloom.pipelines.tasks.texts import no_tokens, unanswerable

if TYPE_CHECKING:
    from batchloom.models import Tokenizer


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens around two texts: BART's are <s> first </s></s> second </s>."""

    before: list[int]
    between: list[int]
    after: list[int]

    @staticmethod
    def of(tokenizer: "Tokenizer") -> "PairTemplate":
        """Return the template of a pair that the tokenizer encodes itself."""
        pair = tokenizer.encode_offsets(["a"], ["a"])[0]
        ids, sequences = pair.ids.tolist(), pair.sequence_ids.tolist()
        first = [i for i, sequence in enumerate(sequences) if sequence == 0]
        second = [i for i, sequence in enumerate(sequences) if sequence == 1]
        return PairTemplate(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def fill(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        return [*self.before, *first, *self.between, *second, *self.after]


def prepare_pairs(
    columns: Sequence[pa.ChunkedArray], names: Sequence[str], tokenizer: "Tokenizer", *, length: InputLength
) -> Prepared:
    """Return one request per pair of texts. Where it is longer than `length`, the longer text is truncated first, as
    transformers' `longest_first` does it; or it is an error."""
    errors: dict[int, RowError] = {}
    for texts, name in reversed(list(zip(columns, names, strict=True))):
        errors |= unanswerable(texts, name)
    rows = [row for row in range(len(columns[0])) if row not in errors]
    firsts, seconds = (
        tokenizer.encode_batch([texts[row].as_py() for row in rows], add_special_tokens=False) for texts in columns
    )
    template = PairTemplate.of(tokenizer)
    num_input, num_truncated = np.zeros((2, len(columns[0])), dtype=np.int32)
    asked = []
    for row, first, second in zip(rows, firsts, seconds, strict=True):
        num_tokens = len(first) + len(second) + template.num_tokens
        if not first and not second:
            errors[row] = no_tokens(", ".join(names))
            continue
        if length.most is not None and num_tokens > length.most:
            if length.truncation == "error":
                errors[row] = too_long(num_tokens, length.most, "Shorten them, or set task_options.truncation.")
                continue
            room = max(length.most - template.num_tokens, 0)
            kept = shares(len(first), len(second), room)
            ids = template.fill(first[length.kept(len(first), kept[0])], second[length.kept(len(second), kept[1])])
        else:
            ids = template.fill(first, second)
        num_input[row], num_truncated[row] = len(ids), num_tokens - len(ids)
        asked.append((row, 0, ids))
    return Prepared(request_table(asked), num_input, num_truncated, errors)


def shares(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts stay where `room` is for both: the shorter one keeps up to half of it."""
    shorter, longer = sorted((num_first, num_second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return (longer, shorter) if num_first > num_second else (shorter, longer)
