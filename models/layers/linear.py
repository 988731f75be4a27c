"""Linear layers split over ranks, named in the models' code. They know which slice of a file's tensor is theirs."""

import torch
from torch import Tensor, nn

from batchloom.models.layers.feedforward import Activation
from batchloom.models.layers.layout import Reorder, Weight, lay_out, product
from batchloom.models.ranks.division import rank_slice
from batchloom.models.ranks.group import TensorParallel, TensorSlice


class ColumnLinear(nn.Module):
    """A linear layer whose outputs are split over the ranks: [N, in] -> [N, out / size].

    Source: column parallelism of Megatron-LM (arXiv 1909.08053, section 3).
    """

    def __init__(self, in_features: int, out_features: int, group: TensorParallel, bias: bool = True) -> None:
        super().__init__()
        self.group = group
        self.rows = group.share(out_features, "output features")
        self.weight = frozen(self.rows, in_features)
        self.bias = frozen(self.rows) if bias else None
        self._laid_out: Weight | None = None

    def forward(self, hidden_ND: Tensor, activation: Activation | None = None) -> Tensor:
        weight = self.weight if self._laid_out is None else self._laid_out
        return product(hidden_ND, weight, self.bias, activation)

    def lay_out(self, reorder: Reorder = lay_out) -> None:
        """Reorder the weight for the processor, once it is read, and free the plain one."""
        self._laid_out = reorder(self.weight)
        if self._laid_out is not None:
            self.weight = without_memory(self.weight)

    def slices(self) -> dict[str, TensorSlice]:
        """Return this rank's slice of the checkpoint's tensor, its rows, by parameter."""
        num_rows = self.rows * self.group.size
        rows = rank_slice(num_rows, self.group.size, self.group.rank)
        return {"weight": TensorSlice((num_rows, self.weight.shape[1]), rows), "bias": TensorSlice((num_rows,), rows)}


class RowLinear(nn.Module):
    """A linear layer whose inputs are split over the ranks: [N, in / size] -> [N, out], all-reduced over the ranks.

    Source: row parallelism of Megatron-LM (arXiv 1909.08053, section 3).
    """

    def __init__(self, in_features: int, out_features: int, group: TensorParallel) -> None:
        super().__init__()
        self.group = group
        self.columns = group.share(in_features, "input features")
        self.weight = frozen(out_features, self.columns)
        self.bias = frozen(out_features)
        self._laid_out: Weight | None = None

    def forward(self, hidden_NF: Tensor) -> Tensor:
        weight = self.weight if self._laid_out is None else self._laid_out
        if self.group.size == 1:
            return product(hidden_NF, weight, self.bias)
        # The bias is added after the all-reduce, or each rank would add it.
        return self.group.all_reduce(product(hidden_NF, weight, None)).add_(self.bias)

    def lay_out(self, reorder: Reorder = lay_out) -> None:
        """Reorder the weight for the processor, once it is read, and free the plain one."""
        self._laid_out = reorder(self.weight)
        if self._laid_out is not None:
            self.weight = without_memory(self.weight)

    def slices(self) -> dict[str, TensorSlice]:
        """Return this rank's slice of the checkpoint's tensor, its columns and the whole bias, by parameter."""
        num_rows, size = self.weight.shape[0], self.group.size
        return {
            "weight": TensorSlice((num_rows, self.columns * size), is_columns=size > 1),
            "bias": TensorSlice((num_rows,)),
        }


def without_memory(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of the same shape and dtype on the meta device, which frees the memory."""
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def frozen(*shape: int) -> nn.Parameter:
    """Return an inference-only parameter, uninitialized; its values come from the checkpoint."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
