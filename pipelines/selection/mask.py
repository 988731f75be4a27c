"""A mask tells which of some rows are chosen, in few bytes. It knows no expression and no file."""

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Mask:
    """Which of the rows `[0, num_rows)` are chosen."""

    num_rows: int
    bits: str
    """A bit a row, compressed, as text."""

    @staticmethod
    def of(flags: Flags) -> "Mask":
        packed = zlib.compress(np.packbits(flags).tobytes(), 9)
        return Mask(len(flags), base64.b64encode(packed).decode())

    @staticmethod
    def joined(masks: Iterable["Mask"]) -> "Mask":
        """Return the mask of rows that follow each other."""
        return Mask.of(np.concatenate([mask.flags for mask in masks]))

    @cached_property
    def flags(self) -> Flags:
        """[rows]. Raises: ValueError where the bits are not those of as many rows."""
        try:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(self.bits, validate=True)), np.uint8)
            flags: Flags = np.unpackbits(packed, count=self.num_rows).astype(bool)
        except (zlib.error, ValueError) as error:
            raise ValueError(f"its mask of chosen rows is no mask ({error})") from error
        if len(packed) != -(-self.num_rows // 8):
            raise ValueError(f"its mask of chosen rows has {8 * len(packed)} bits for {self.num_rows} rows")
        return flags

    @cached_property
    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[chosen]: the numbers of the chosen rows."""
        return np.flatnonzero(self.flags)

    @property
    def num_chosen(self) -> int:
        return len(self.rows)
