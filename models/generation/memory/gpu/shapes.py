"""The sizes of all that a step reads, few of them different, so that graphs recur. It knows no tensor and no request.

Rows and columns of tables cost little, so they are powers of two. Blocks are read whether anybody needs them or not: a
shape with up to a quarter more than needed is used again; a new one has room for new tokens, which become more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FEWEST_ROWS = 8
FEWEST_COLUMNS = 4
FEW_BLOCKS = 64  # so many in vain are no matter: a sixth to a quarter of the weights of bart-large and bloom-560m


@dataclass(frozen=True)
class StepShape:
    """Rows of a step; for each store, new tokens' first, the blocks that are read and the most that one row reads."""

    num_rows: int
    num_blocks: tuple[int, ...]
    num_columns: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.num_blocks)

    def serves(self, need: "StepShape") -> bool:
        """Whether all that is needed fits, and not much besides is read."""
        mine, needed = ((one.num_rows, *one.num_blocks, *one.num_columns) for one in (self, need))
        fits = all(own >= other for own, other in zip(mine, needed, strict=True))
        is_near = 4 * (self.total - FEW_BLOCKS) <= 5 * need.total
        return fits and is_near and self.num_rows <= max(FEWEST_ROWS, 2 * need.num_rows)

    def roomy(self, capacities: Iterable[int]) -> "StepShape":
        """A shape for what is needed now and in some steps; no more blocks than there are."""
        own, *sources = self.num_blocks
        blocks = (own + FEW_BLOCKS // 4 + self.total // 8, *(number + number // 16 for number in sources))
        return StepShape(
            max(FEWEST_ROWS, _power(self.num_rows)),
            tuple(min(capacity, -(-number // 8) * 8) for capacity, number in zip(capacities, blocks, strict=True)),
            tuple(max(FEWEST_COLUMNS, _power(number)) for number in self.num_columns),
        )


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
