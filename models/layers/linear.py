"""Linear layers cut over ranks, visible in the model's text. They know which part of a file's tensor is theirs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel import Part, TensorParallel


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

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return F.linear(hidden_ND, self.weight, self.bias)

    def parts(self) -> dict[str, Part]:
        """By parameter, what of the checkpoint's tensor this rank holds: its rows."""
        where = (slice(self.group.rank * self.rows, (self.group.rank + 1) * self.rows),)
        num_rows = self.rows * self.group.size
        return {"weight": Part(where, (num_rows, self.weight.shape[1])), "bias": Part(where, (num_rows,))}


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

    def forward(self, hidden_NF: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.linear(hidden_NF, self.weight, self.bias)
        # The bias comes after the sum, or each rank adds it.
        return self.group.all_reduce(F.linear(hidden_NF, self.weight)).add_(self.bias)

    def parts(self) -> dict[str, Part]:
        """By parameter, what of the checkpoint's tensor this rank holds: its columns, and the whole bias."""
        columns = slice(self.group.rank * self.columns, (self.group.rank + 1) * self.columns)
        num_rows = self.weight.shape[0]
        return {
            "weight": Part((slice(None), columns), (num_rows, self.columns * self.group.size)),
            "bias": Part((), (num_rows,)),
        }


def frozen(*shape: int) -> nn.Parameter:
    """An inference-only parameter; its values come from the checkpoint."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
