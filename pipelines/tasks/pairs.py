"""Build pairs of texts from their tokens, so that each text is encoded once for all its pairs. It knows no task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
