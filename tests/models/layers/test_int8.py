"""int8 products are what exact integers give, a row's depends on no other row, and what is not finite stays so."""

import pytest
import torch
import torch.nn.functional as F

from batchloom.models.layers import int8
from batchloom.models.layers.feedforward import PReLU, gelu_tanh
from batchloom.models.layers.layout import product

pytestmark = pytest.mark.skipif(not int8.computes_int8(), reason="no exact int8 products on this processor")


def made(num_rows, dtype, num_outputs=48, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_outputs, width, generator=generator)
    bias = torch.randn(num_outputs, generator=generator).to(dtype)
    hidden = torch.randn(num_rows, width, generator=generator).to(dtype)
    return weight, bias, hidden


def integers(weight):
    """The integers and scales of a weight, as they are before they are packed."""
    scale = weight.abs().amax(-1, keepdim=True) / 127
    return (weight / scale).round().long(), scale.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, F.gelu, gelu_tanh, F.relu, torch.tanh])
@pytest.mark.parametrize("num_rows", [0, 1, 5, int8.CHUNK_ROWS, 2 * int8.CHUNK_ROWS + 3])
def test_a_product_is_that_of_the_integers(dtype, activation, num_rows):
    weight, bias, hidden = made(num_rows, dtype)
    found = product(hidden, int8.quantized(weight), bias, activation)
    quantized, scale = int8.quantized_rows(hidden)
    of_weight, of_outputs = integers(weight)
    sums = (quantized.long() - int8.ZERO) @ of_weight.t()  # exact
    expected = sums * scale.double() * of_outputs.t() + bias.double()
    expected = expected if activation is None else activation(expected)
    # Sums up to 30: the three factors round in float32; bfloat16 rounds the sum and the result to 8 bits.
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-4 if dtype == torch.float32 else 30 * 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_integers_are_within_half_a_step_of_what_they_stand_for(dtype):
    weight, _, hidden = made(300, dtype)
    hidden[7] *= 1e4
    hidden[8] *= 1e-4
    quantized, scale = int8.quantized_rows(hidden)
    # Half a step, and what float32 rounds at the edge between two integers.
    assert ((quantized.double() - int8.ZERO) * scale.double() - hidden.double()).abs().div(scale).max() <= 0.5 + 1e-5
    # A step is a 127th of the largest value, and up to 2 in 128 more for a scale that bfloat16 has.
    assert (scale.double() / (hidden.double().abs().amax(-1, keepdim=True) / 127)).max() < 1 + 2 / 128
    of_weight, of_outputs = integers(weight)
    assert (of_weight * of_outputs - weight.double()).abs().div(of_outputs).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, F.gelu, gelu_tanh])
def test_a_row_does_not_depend_on_its_neighbours(dtype, activation):
    """To the bit, whatever the number of rows: sums of integers have no order.

    Rows of 96, as torch computes the sigmoid of what is left over of 32 by another formula.
    """
    weight, bias, hidden = made(300, dtype, num_outputs=96, width=72)
    packed = int8.quantized(weight)
    together = product(hidden, packed, bias, activation)
    hidden[40:] *= 100  # the others
    for num_rows in (1, 2, 3, 17, 40, 129, 300):
        found = product(hidden[:num_rows], packed, bias, activation)
        assert torch.equal(found[:40], together[: min(40, num_rows)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_so_afterwards_and_nothing_else(dtype, value):
    weight, bias, hidden = made(4, dtype)
    hidden[2, 5] = value
    found = product(hidden, int8.quantized(weight), bias)
    assert not found[2].isfinite().any()
    assert found[[0, 1, 3]].isfinite().all()
    weight[6, 3] = value
    found = product(hidden[:2], int8.quantized(weight), bias)
    assert not found[:, 6].isfinite().any()
    assert found[:, [0, 5, 7]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_zeros(dtype):
    weight, bias, hidden = made(3, dtype)
    hidden[1], weight[5] = 0, 0
    found = product(hidden, int8.quantized(weight), bias)
    assert torch.equal(found[1], bias)
    assert torch.equal(found[:, 5], bias[5].expand(3))


def test_the_largest_numbers_do_not_overflow():
    """Without VNNI, sums of two products are cut off at 16 bits."""
    hidden, weight = torch.ones(2, 4096), torch.ones(16, 4096)
    hidden[1] = -1
    found = product(hidden, int8.quantized(weight), None)
    assert torch.allclose(found, 4096 * hidden[:, :1].expand(2, 16), rtol=1e-2)  # a row's scale: up to 2 in 128 more


def test_activations_with_weights_are_in_the_dtype_of_these():
    weight, bias, hidden = made(3, torch.bfloat16)
    prelu = PReLU().to(torch.bfloat16)
    prelu.weight.fill_(0.25)
    sums = product(hidden, int8.quantized(weight), bias)
    assert torch.equal(product(hidden, int8.quantized(weight), bias, prelu), F.prelu(sums, prelu.weight))


def test_gelu_by_the_logistic_function_is_gelu():
    x = torch.linspace(-12, 12, 4001)
    assert torch.allclose(int8.fast_gelu_tanh(x), gelu_tanh(x.double()).float(), atol=2e-6, rtol=1e-5)
