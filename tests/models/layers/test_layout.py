"""Laid out weights give the products of plain ones, and cost no second copy."""

import pytest
import torch
import torch.nn.functional as F

from batchloom.models.layers import layout
from batchloom.models.layers.feedforward import gelu_tanh
from batchloom.models.layers.layout import lay_out, product
from batchloom.models.layers.linear import ColumnLinear
from batchloom.models.ranks.group import SINGLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, F.gelu, gelu_tanh, F.relu, F.silu, torch.tanh])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 130])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_laid_out_weight_gives_the_plain_product(monkeypatch, dtype, activation, num_rows, has_kernels):
    if not has_kernels:
        monkeypatch.setattr(layout, "dense_kernels", lambda _: None)
    weight, bias = torch.randn(48, 32).to(dtype), torch.randn(48).to(dtype)
    laid_out = lay_out(weight)
    if laid_out is None:
        pytest.skip(f"this build of torch has no oneDNN products in {dtype}")
    hidden = torch.randn(num_rows, 32).to(dtype)
    found = product(hidden, laid_out, bias, activation)
    expected = product(hidden.double(), weight.double(), bias.double(), activation)
    # sums near 10: float32 rounds the 24th bit, bfloat16 the 8th
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_a_laid_out_layer_keeps_its_shape_and_gives_its_plain_weight_back():
    layer = ColumnLinear(32, 48, SINGLE)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    hidden = torch.randn(3, 32)
    before = layer(hidden)
    layer.lay_out()
    assert torch.allclose(layer(hidden), before, atol=1e-5)
    assert layer.weight.shape == (48, 32)
    assert layer.weight.is_meta or lay_out(torch.eye(16)) is None
