"""Int8 products by the compiled kernel: one call quantizes rows, multiplies, scales, adds and activates.

Without an activation and with relu it gives the bits of models/layers/int8.py's operators. GELU is computed by other
polynomials than torch's, within some units of float32's last place, before it is rounded.
"""

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.layers.feedforward import Activation
from batchloom.models.layers.native.panels import NUMBERS, PANEL


@dataclass(frozen=True)
class Int8Panels:
    """A weight in int8 that the kernel multiplies."""

    library: ctypes.CDLL
    packed: Tensor
    """int8, in the layout of int8.cpp."""
    scale_F: Tensor
    """float32, zeros behind the outputs up to whole panels."""
    correction_F: Tensor
    """int32, as long: what a zero point that is not 0 adds to sums."""
    num_outputs: int
    num_inputs: int

    @property
    def num_bytes(self) -> int:
        """Without the padding to whole panels, which weights of real sizes do not have."""
        return self.num_outputs * (self.num_inputs + self.scale_F.itemsize + self.correction_F.itemsize)

    def product(self, hidden_ND: Tensor, bias_F: Tensor | None, activation: Activation | None = None) -> Tensor:
        """Compute activation(hidden @ weight.T + bias), [N, D] -> [N, F], in bfloat16 or float32 as `hidden` is."""
        assert hidden_ND.shape[1] == self.num_inputs, f"{hidden_ND.shape[1]} inputs of {self.num_inputs}"
        assert hidden_ND.dtype in (torch.bfloat16, torch.float32), hidden_ND.dtype
        assert bias_F is None or (bias_F.dtype == hidden_ND.dtype and len(bias_F) == self.num_outputs)
        hidden_ND = hidden_ND.contiguous()
        bias_F = None if bias_F is None else bias_F.contiguous()
        out_NF = hidden_ND.new_empty(len(hidden_ND), self.num_outputs)
        number = NUMBERS.get(activation)
        self.library.int8_product(
            hidden_ND.data_ptr(),
            hidden_ND.dtype == torch.bfloat16,
            len(hidden_ND),
            self.num_outputs,
            self.num_inputs,
            self.packed.data_ptr(),
            self.scale_F.data_ptr(),
            self.correction_F.data_ptr(),
            None if bias_F is None else bias_F.data_ptr(),
            number or 0,
            out_NF.data_ptr(),
            torch.get_num_threads(),
        )
        return out_NF if number is not None or activation is None else activation(out_NF)


def panels(library: ctypes.CDLL, integers_FD: Tensor, scale_F: Tensor) -> Int8Panels:
    """Return integers and their scales as a weight."""
    num_outputs, num_inputs = integers_FD.shape
    integers_FD = integers_FD.contiguous()
    packed = integers_FD.new_zeros(library.int8_packed_size(num_outputs, num_inputs))
    padding = (0, -num_outputs % PANEL)
    correction_F = integers_FD.new_zeros(num_outputs + padding[1], dtype=torch.int32)
    library.int8_pack(integers_FD.data_ptr(), num_outputs, num_inputs, packed.data_ptr(), correction_F.data_ptr())
    return Int8Panels(library, packed, F.pad(scale_F.float(), padding), correction_F, num_outputs, num_inputs)
