"""Convert between padded batches [B, T] and packed tokens [N]. It knows masks and lengths, no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.transfers import queued


@dataclass(frozen=True)
class Packing:
    """The positions of a padded batch's real tokens. Rows "a b _" and "c d e", with mask 110 and 111, pack to abcde."""

    mask_BT: Tensor  # bool

    @property
    def lengths(self) -> list[int]:
        return self.mask_BT.sum(1).tolist()

    @property
    def rows_with_holes(self) -> list[int]:
        """The rows whose tokens have padding between them."""
        is_start_BT = self.mask_BT.int().diff(dim=1, prepend=self.mask_BT.new_zeros(len(self.mask_BT), 1).int()) > 0
        return (is_start_BT.sum(1) > 1).nonzero().flatten().tolist()

    def pack(self, x_BT: Tensor) -> Tensor:
        """Pack: [B, T, ...] -> [N, ...]."""
        return x_BT[self.mask_BT]

    def unpack(self, x_N: Tensor) -> Tensor:
        """Unpack: [N, ...] -> [B, T, ...], zeros at padding."""
        x_BT = x_N.new_zeros(*self.mask_BT.shape, *x_N.shape[1:])
        x_BT[self.mask_BT] = x_N
        return x_BT


def lengths_to(lengths: Sequence[int], shorter: Sequence[int], device: torch.device) -> Tensor:
    """Return the indices of the packed tokens that stay when sequences are cut: lengths 3, 2 to 2, 1 -> [0, 1, 3]."""
    starts = accumulate(lengths, initial=0)
    ranges = [torch.arange(start, start + kept) for start, kept in zip(starts, shorter, strict=False)]
    return queued(torch.cat(ranges), device)


def packing_of(input_ids_BT: Tensor, attention_mask_BT: Tensor | None) -> Packing:
    """Return the packing of a batch; without a mask every token is real.

    Raises: RequestError where the mask has another shape than the ids or a row without tokens.
    """
    if attention_mask_BT is None:
        return Packing(torch.ones_like(input_ids_BT, dtype=torch.bool))
    if attention_mask_BT.shape != input_ids_BT.shape:
        raise RequestError(
            f"attention_mask must have the shape of input_ids, {list(input_ids_BT.shape)}; "
            f"found {list(attention_mask_BT.shape)}."
        )
    mask_BT = attention_mask_BT.to(device=input_ids_BT.device, dtype=torch.bool)
    if empty := (~mask_BT.any(1)).nonzero().flatten().tolist():
        raise RequestError(f"attention_mask leaves rows {empty} without a token; a row needs one at least.")
    return Packing(mask_BT)
