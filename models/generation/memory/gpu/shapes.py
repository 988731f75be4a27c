"""The shape of a decode step: the sizes of all that it reads, bucketed so that graphs recur. It knows no tensor.

Table rows and columns cost little, so they are rounded up to powers of two. Blocks are read whether used or not: a
known shape with up to a quarter more blocks than needed is reused; a new one gets room for the tokens of the next
steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import ge

MIN_ROWS = 8
MIN_COLUMNS = 4
FEW_BLOCKS = 64  # reading this many unused blocks is cheap: 1/6 to 1/4 of the weights of bart-large and bloom-560m


@dataclass(frozen=True)
class StepShape:
    """Rows of a step; for each store (generated tokens first), the blocks read and the most that one row reads."""

    num_rows: int
    num_blocks: tuple[int, ...]
    num_columns: tuple[int, ...]

    @cached_property
    def total(self) -> int:
        """Blocks of all stores."""
        return sum(self.num_blocks)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return (self.num_rows, *self.num_blocks, *self.num_columns)

    def serves(self, need: "StepShape") -> bool:
        """Return whether everything needed fits, with few unused blocks and rows."""
        is_near = 4 * (self.total - FEW_BLOCKS) <= 5 * need.total and self.num_rows <= max(MIN_ROWS, 2 * need.num_rows)
        return is_near and all(map(ge, self._sizes, need._sizes))

    def roomy(self, capacities: Iterable[int]) -> "StepShape":
        """Return a shape for this step and the next ones, with at most as many blocks as the stores have."""
        generated, *prompts = self.num_blocks
        blocks = (generated + FEW_BLOCKS // 4 + self.total // 8, *(number + number // 16 for number in prompts))
        return StepShape(
            max(MIN_ROWS, _power_of_two(self.num_rows)),
            tuple(min(capacity, -(-number // 8) * 8) for capacity, number in zip(capacities, blocks, strict=True)),
            tuple(max(MIN_COLUMNS, _power_of_two(number)) for number in self.num_columns),
        )


def _power_of_two(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()
