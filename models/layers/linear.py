"""Linear layers cut over ranks, visible in the model's text. They know which part of a file's tensor is theirs."""

import torch
from torch import Tensor, nn

from batchloom.models.layers.feedforward import Activation
from batchloom.models.layers.layout import lay_out, product
from batchloom.models.ranks.division import run
from batchloom.models.ranks.group import Part, TensorParallel


class ColumnLinear(nn.Module):
    """A linear layer whose outputs are cut over the ranks: [N, in] -> [N, out / size].

    Source: column parallelism of Megatron-LM (arXiv 1909.08053, section 3).
    """

    def __init__(self, in_features: int, out_features: int, group: TensorParallel, bias: bool = True) -> None:
        super().__init__()
        self.group = group
        self.rows = group.share(out_features, "output features")
        self.weight = frozen(self.rows, in_features)
        self.bias = frozen(self.rows) if bias else None
        self._laid_out: Tensor | None = None

    def forward(self, hidden_ND: Tensor, activation: Activation | None = None) -> Tensor:
        weight = self.weight if self._laid_out is None else self._laid_out
        return product(hidden_ND, weight, self.bias, activation)

    def lay_out(self) -> None:
        """Called once the weights are read: gives them the processor's order, in place of the plain one."""
        self._laid_out = lay_out(self.weight)
        if self._laid_out is not None:
            self.weight = without_memory(self.weight)

    def parts(self) -> dict[str, Part]:
        """By parameter, what of the checkpoint's tensor this rank holds: its rows."""
        num_rows = self.rows * self.group.size
        rows = run(num_rows, self.group.size, self.group.rank)
        return {"weight": Part((num_rows, self.weight.shape[1]), rows), "bias": Part((num_rows,), rows)}


class RowLinear(nn.Module):
    """A linear layer whose inputs are cut over the ranks: [N, in / size] -> [N, out], summed over the ranks.

    Source: row parallelism of Megatron-LM (arXiv 1909.08053, section 3).
    """

    def __init__(self, in_features: int, out_features: int, group: TensorParallel) -> None:
        super().__init__()
        self.group = group
        self.columns = group.share(in_features, "input features")
        self.weight = frozen(out_features, self.columns)
        self.bias = frozen(out_features)
        self._laid_out: Tensor | None = None

    def forward(self, hidden_NF: Tensor) -> Tensor:
        weight = self.weight if self._laid_out is None else self._laid_out
        if self.group.size == 1:
            return product(hidden_NF, weight, self.bias)
        # The bias comes after the sum, or each rank adds it.
        return self.group.all_reduce(product(hidden_NF, weight, None)).add_(self.bias)

    def lay_out(self) -> None:
        """Called once the weights are read: gives them the processor's order, in place of the plain one."""
        self._laid_out = lay_out(self.weight)
        if self._laid_out is not None:
            self.weight = without_memory(self.weight)

    def parts(self) -> dict[str, Part]:
        """By parameter, what of the checkpoint's tensor this rank holds: its columns, and the whole bias."""
        num_rows, size = self.weight.shape[0], self.group.size
        return {"weight": Part((num_rows, self.columns * size), is_columns=size > 1), "bias": Part((num_rows,))}


def without_memory(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter that keeps its shape and dtype and gives its memory back."""
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def frozen(*shape: int) -> nn.Parameter:
    """An inference-only parameter; its values come from the checkpoint."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
