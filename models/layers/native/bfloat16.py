"""bfloat16 products by the compiled kernel: one call multiplies, adds and activates, and rounds once.

Sums are in float32 in one order for each row, so that a row's bits depend on no other row and on no number of threads.
Products of numbers below 1e-38 are taken for 0, as the processor's instruction does.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.layers.feedforward import Activation
from batchloom.models.layers.native.panels import NUMBERS


@dataclass(frozen=True)
class Bfloat16Panels:
    """A weight in bfloat16 that the kernel multiplies."""

    library: ctypes.CDLL
    packed: Tensor
    """bfloat16, in the layout of bfloat16.cpp."""
    num_outputs: int
    num_inputs: int

    def product(self, hidden_ND: Tensor, bias_F: Tensor | None, activation: Activation | None = None) -> Tensor:
        """Compute activation(hidden @ weight.T + bias), [N, D] -> [N, F]."""
        assert hidden_ND.shape[1] == self.num_inputs, f"{hidden_ND.shape[1]} inputs of {self.num_inputs}"
        assert hidden_ND.dtype == torch.bfloat16, hidden_ND.dtype
        assert bias_F is None or (bias_F.dtype == torch.bfloat16 and len(bias_F) == self.num_outputs)
        hidden_ND = hidden_ND.contiguous()
        bias_F = None if bias_F is None else bias_F.contiguous()
        out_NF = hidden_ND.new_empty(len(hidden_ND), self.num_outputs)
        number = NUMBERS.get(activation)
        self.library.bfloat16_product(
            hidden_ND.data_ptr(),
            len(hidden_ND),
            self.num_outputs,
            self.num_inputs,
            self.packed.data_ptr(),
            None if bias_F is None else bias_F.data_ptr(),
            number or 0,
            out_NF.data_ptr(),
            torch.get_num_threads(),
        )
        return out_NF if number is not None or activation is None else activation(out_NF)


def panels(library: ctypes.CDLL, weight_FD: Tensor) -> Bfloat16Panels:
    """Return a weight for the kernel."""
    num_outputs, num_inputs = weight_FD.shape
    weight_FD = weight_FD.contiguous()
    packed = weight_FD.new_zeros(library.bfloat16_packed_size(num_outputs, num_inputs))
    library.bfloat16_pack(weight_FD.data_ptr(), num_outputs, num_inputs, packed.data_ptr())
    return Bfloat16Panels(library, packed, num_outputs, num_inputs)
