"""Compiled kernels give what plain torch gives, each row by itself, and what is not finite stays so."""

import ctypes
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from batchloom.models.layers import int8
from batchloom.models.layers.feedforward import gelu_tanh
from batchloom.models.layers.native import bfloat16, library
from batchloom.models.layers.native.build import library_file
from batchloom.models.layers.native.int8 import panels
from batchloom.models.layers.native.library import bfloat16_kernels, dense_kernels, kernels
from batchloom.models.layers.native.norms import norm_of_sum
from batchloom.models.layers.native.packed_attention import attend_packed
from batchloom.models.layers.native.signatures import declare
from batchloom.models.layers.norm import Norm, plain_norm_of_sum

has_int8 = pytest.mark.skipif(kernels() is None, reason="no compiler, or a processor without AVX-512 and VNNI")
has_bfloat16 = pytest.mark.skipif(bfloat16_kernels() is None, reason="no compiler, or a processor without bfloat16")
DTYPES = [torch.float32, torch.bfloat16]
# Rows: none, one, blocks of six with and without a rest, more than a chunk. Outputs and inputs beside whole panels.
SHAPES = [(0, 48, 32), (1, 3, 5), (5, 64, 64), (6, 65, 33), (97, 130, 68), (200, 100, 300)]


def made(num_rows, num_outputs, num_inputs, dtype):
    generator = torch.Generator().manual_seed(num_rows)
    weight_FD = torch.randn(num_outputs, num_inputs, generator=generator)
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True) / int8.LARGEST
    integers_FD = (weight_FD / scale_F1).round().to(torch.int8)
    kinds = panels(kernels(), integers_FD, scale_F1[:, 0]), int8.for_operator(integers_FD, scale_F1[:, 0])
    hidden_ND = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
    return kinds, torch.randn(num_outputs, generator=generator).to(dtype), hidden_ND


@has_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", [None, F.relu, torch.tanh])
def test_int8_products_are_those_of_the_operators_to_the_bit(dtype, shape, activation):
    (kernel, operator), bias_F, hidden_ND = made(*shape, dtype)
    hidden_ND[1:2] = 0
    hidden_ND[2:3] *= 1e6
    for bias in (bias_F, None):
        found, expected = (kind.product(hidden_ND, bias, activation) for kind in (kernel, operator))
        assert found.dtype == dtype
        assert torch.equal(found, expected)


@has_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [F.gelu, gelu_tanh])
def test_gelu_is_that_of_the_operators_within_rounding(dtype, activation):
    (kernel, operator), bias_F, hidden_ND = made(97, 130, 68, dtype)
    found, expected = (kind.product(hidden_ND, bias_F, activation).float() for kind in (kernel, operator))
    # Of 1 + erf both lose the last bits where it is near 0: 2^-23 times values up to 30; bfloat16 has 8 bits.
    tolerance = {"atol": 4e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 4e-6, "rtol": 2**-7}
    torch.testing.assert_close(found, expected, **tolerance)


@has_int8
@pytest.mark.parametrize("activation", [F.gelu, gelu_tanh])
def test_gelu_is_near_the_formula_everywhere(activation):
    """A weight of one hands each value on: its row's only one, so it is 127 steps, and less than a scale's rounding."""
    one = torch.tensor([[int8.LARGEST]], dtype=torch.int8)
    weight = panels(kernels(), one, torch.tensor([1 / int8.LARGEST]))
    handed_on = weight.product(torch.linspace(-15, 15, 4001)[:, None], None)
    found = weight.product(torch.linspace(-15, 15, 4001)[:, None], None, activation)
    # 1 + erf(x / sqrt 2) is rounded to 2^-24 of 1 at best, and is multiplied by x / 2, up to 7.5.
    torch.testing.assert_close(found.double(), activation(handed_on.double()), atol=2e-6, rtol=1e-6)


@has_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", [None, F.relu, F.gelu, gelu_tanh])
def test_int8_rows_that_are_not_finite_give_nothing_finite_that_operators_do_not(dtype, value, activation):
    (kernel, operator), bias_F, hidden_ND = made(7, 65, 33, dtype)
    hidden_ND[2, 5] = value
    found, expected = (kind.product(hidden_ND, bias_F, activation) for kind in (kernel, operator))
    others = [0, 1, 3, 4, 5, 6]
    assert found[others].isfinite().all()
    assert not found[2][~expected[2].isfinite()].isfinite().any()
    assert not expected[2].isfinite().all()


def of_each_number_of_threads(compute):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(compute())
    finally:
        torch.set_num_threads(before)
    return found


@has_int8
@pytest.mark.parametrize("num_rows", [7, 300])
def test_threads_share_an_int8_product_and_change_no_bit(num_rows):
    (kernel, _), bias_F, hidden_ND = made(num_rows, 200, 40, torch.bfloat16)
    assert torch.equal(*of_each_number_of_threads(lambda: kernel.product(hidden_ND, bias_F, F.gelu)))


def in_bfloat16(num_rows, num_outputs, num_inputs):
    generator = torch.Generator().manual_seed(num_rows)
    sizes = (num_outputs, num_inputs), (num_rows, num_inputs), (num_outputs,)
    weight_FD, hidden_ND, bias_F = (torch.randn(*size, generator=generator).bfloat16() for size in sizes)
    return weight_FD, bfloat16.panels(bfloat16_kernels(), weight_FD), hidden_ND, bias_F


@has_bfloat16
@pytest.mark.parametrize("shape", [*SHAPES, (3, 65, 0)])  # without inputs: a division by zero
@pytest.mark.parametrize("activation", [None, F.relu, F.gelu, gelu_tanh, torch.tanh])
def test_bfloat16_products_are_the_formula_rounded_once(shape, activation):
    weight_FD, kernel, hidden_ND, bias_F = in_bfloat16(*shape)
    for bias in (bias_F, None):
        found = kernel.product(hidden_ND, bias, activation)
        exact = F.linear(hidden_ND.double(), weight_FD.double(), None if bias is None else bias.double())
        # tanh is torch's, of sums that are rounded already: a slope of 1 at most hands their rounding on.
        expected, roundings = (exact, 1) if activation is None else (activation(exact), 1 + (activation is torch.tanh))
        assert found.dtype == torch.bfloat16
        # Half a place of bfloat16's 8 bits for each rounding; sums of some 300 products of about 1 in float32.
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=roundings * 2**-8)


@has_bfloat16
@pytest.mark.parametrize("num_inputs", [68, 5000])  # 5,000: a chunk is fewer rows
def test_a_row_of_a_bfloat16_product_has_its_bits_whatever_is_beside_it(num_inputs):
    _, kernel, hidden_ND, bias_F = in_bfloat16(200, 130, num_inputs)
    whole = kernel.product(hidden_ND, bias_F, F.gelu)
    for rows in (slice(0, 1), slice(199, 200), slice(3, 10), slice(50, 150)):
        assert torch.equal(kernel.product(hidden_ND[rows], bias_F, F.gelu), whole[rows])


@has_bfloat16
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", [None, F.relu, F.gelu, gelu_tanh])
def test_bfloat16_rows_that_are_not_finite_stay_so(value, activation):
    weight_FD, kernel, hidden_ND, bias_F = in_bfloat16(7, 65, 33)
    hidden_ND[2, 5] = value
    found = kernel.product(hidden_ND, bias_F, activation)
    expected = F.linear(hidden_ND.float(), weight_FD.float(), bias_F.float())
    expected = expected if activation is None else activation(expected)
    assert found[[0, 1, 3, 4, 5, 6]].isfinite().all()
    assert torch.equal(found[2].isfinite(), expected[2].isfinite())


@has_bfloat16
@pytest.mark.parametrize("num_rows", [7, 600])
def test_threads_share_a_bfloat16_product_and_change_no_bit(num_rows):
    _, kernel, hidden_ND, bias_F = in_bfloat16(num_rows, 200, 300)
    assert torch.equal(*of_each_number_of_threads(lambda: kernel.product(hidden_ND, bias_F, F.gelu)))


def norm_in_bfloat16(num_rows, width):
    generator = torch.Generator().manual_seed(width)
    norm = Norm(width, eps=1e-5)
    for parameter in (norm.weight, norm.bias):
        torch.nn.init.normal_(parameter, generator=generator)
    residual_ND, update_ND = (torch.randn(num_rows, width, generator=generator).bfloat16() for _ in range(2))
    return norm.bfloat16().requires_grad_(False), 3 * residual_ND + 5, update_ND


@has_bfloat16
@pytest.mark.parametrize(("num_rows", "width"), [(0, 16), (1, 1), (5, 17), (3, 64), (7, 100), (130, 1000)])
def test_the_norm_of_a_sum_is_that_of_torch(num_rows, width):
    norm, residual_ND, update_ND = norm_in_bfloat16(num_rows, width)
    found_sum, found = norm_of_sum(bfloat16_kernels(), residual_ND, update_ND, norm)
    right_sum, right = plain_norm_of_sum(residual_ND, update_ND, norm)
    assert torch.equal(found_sum, right_sum)
    # Sums over a row in float32 have another order, which shows where a number lies between two of bfloat16.
    torch.testing.assert_close(found, right, atol=1e-5, rtol=2**-7)
    assert (found != right).sum() <= 1 + found.numel() // 500


@has_bfloat16
def test_a_norm_has_its_bits_whatever_is_beside_it_and_on_any_number_of_threads():
    norm, residual_ND, update_ND = norm_in_bfloat16(200, 300)
    kernel = bfloat16_kernels()
    one, two = of_each_number_of_threads(lambda: norm_of_sum(kernel, residual_ND, update_ND, norm)[1])
    assert torch.equal(one, two)
    strided = (x.repeat_interleave(2, 0)[7:9:2] for x in (residual_ND, update_ND))
    assert torch.equal(norm_of_sum(kernel, *strided, norm)[1], one[3:4])


@has_bfloat16
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_norm_of_what_is_not_finite_is_not_and_its_neighbours_are(value):
    norm, residual_ND, update_ND = norm_in_bfloat16(3, 40)
    update_ND[1, 5] = value
    _, found = norm_of_sum(bfloat16_kernels(), residual_ND, update_ND, norm)
    assert found.isfinite().all(1).tolist() == [True, False, True]
    assert found[1].isnan().all()


@has_bfloat16
def test_a_norm_whose_variance_overflows_is_nan():
    """By the formula it is the bias, as torch's is for some widths: a finite answer of what is lost."""
    norm, residual_ND, update_ND = norm_in_bfloat16(3, 40)
    update_ND[1] *= 1e30
    _, found = norm_of_sum(bfloat16_kernels(), residual_ND, update_ND, norm)
    assert found.isnan().all(1).tolist() == [False, True, False]


@has_bfloat16
def test_a_norm_reads_parameters_that_are_views():
    norm, residual_ND, update_ND = norm_in_bfloat16(3, 40)
    _, expected = norm_of_sum(bfloat16_kernels(), residual_ND, update_ND, norm)
    for name in ("weight", "bias"):
        strided = getattr(norm, name).repeat_interleave(2)[::2]
        setattr(norm, name, torch.nn.Parameter(strided, requires_grad=False))
    assert not norm.weight.is_contiguous()
    assert torch.equal(norm_of_sum(bfloat16_kernels(), residual_ND, update_ND, norm)[1], expected)


@has_bfloat16
@pytest.mark.parametrize("activation", [F.relu, F.gelu, gelu_tanh])
def test_an_activation_of_each_number_of_bfloat16_is_the_formula_rounded(activation):
    one = bfloat16.panels(bfloat16_kernels(), torch.ones(1, 1).bfloat16())
    number_N = torch.arange(-(1 << 15), 1 << 15).short().view(torch.bfloat16)
    number_N = number_N[number_N.isfinite()]
    found = one.product(number_N[:, None], None, activation)[:, 0].double()
    # Half a place of 8 bits, and 2^-16 of it where a number lies between two. Of erfc's end no more than 1e-9 is kept.
    torch.testing.assert_close(found, activation(number_N.double()), atol=1e-9, rtol=2**-8 + 2**-16)


def plain_attention(q_THK, k_SHK, v_SHK, causal, slopes_H):
    """Of one sequence, in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q_THK, k_SHK, v_SHK))
    scores_HTS = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    key_S = torch.arange(k.shape[1])
    if slopes_H is not None:
        scores_HTS += slopes_H.double()[:, None, None] * key_S
    if causal:
        query_T = torch.arange(q.shape[1]) + k.shape[1] - q.shape[1]
        scores_HTS.masked_fill_(key_S > query_T[:, None], -torch.inf)
    return (scores_HTS.softmax(-1) @ v).transpose(0, 1)


def packed(lengths, num_heads, head_dim):
    generator = torch.Generator().manual_seed(head_dim)
    (num_queries, num_keys) = (sum(one) for one in zip(*lengths, strict=True))
    q_NHK = 2 * torch.randn(num_queries, num_heads, head_dim, generator=generator)
    kv_S2HK = torch.randn(num_keys, 2, num_heads, head_dim, generator=generator).bfloat16()
    return q_NHK.bfloat16(), *kv_S2HK.unbind(1)


@has_bfloat16
@pytest.mark.parametrize("lengths", [[(1, 1), (5, 5), (3, 7)], [(70, 70), (25, 25)], [(24, 64), (1, 300), (31, 33)]])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(3, 64), (2, 24), (4, 5), (1, 80), (2, 128)])
@pytest.mark.parametrize("kind", ["all", "causal", "alibi"])
def test_packed_attention_is_the_formula(lengths, num_heads, head_dim, kind):
    q_NHK, k_SHK, v_SHK = packed(lengths, num_heads, head_dim)
    slopes_H = torch.linspace(0.1, 1, num_heads) if kind == "alibi" else None
    causal, scale = kind != "all", head_dim**-0.5
    found = attend_packed(bfloat16_kernels(), q_NHK, k_SHK, v_SHK, lengths, causal, scale, slopes_H)
    texts = [x.split([one[i] for one in lengths]) for x, i in ((q_NHK, 0), (k_SHK, 1), (v_SHK, 1))]
    expected = torch.cat([plain_attention(*text, causal, slopes_H) for text in zip(*texts, strict=True)])
    # Weights and the result are rounded to bfloat16's 8 bits; values are up to 4.
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=2**-8)
    alone = attend_packed(bfloat16_kernels(), *(text[-1] for text in texts), lengths[-1:], causal, scale, slopes_H)
    assert torch.equal(alone, found[-lengths[-1][0] :])


@has_bfloat16
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_packed_attention_hands_on_what_is_not_finite_to_its_sequence_alone(value, which):
    lengths = [(5, 5), (20, 20), (3, 3)]
    tensors = [x.clone() for x in packed(lengths, 2, 16)]
    tensors[which][12, 1, 3] = value
    found = attend_packed(bfloat16_kernels(), *tensors, lengths, False, 0.25)
    assert not found[5:25, 1].isfinite().all()
    assert found[:5].isfinite().all()
    assert found[25:].isfinite().all()
    assert found[:, 0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_products_of_many_rows_are_left_to_onednn_where_it_has_amx(monkeypatch, dtype):
    monkeypatch.setattr(library, "kernels", lambda: "a library")
    both = {"avx512_bf16", "avx512_vnni"}
    for features, expected in ((both, "a library"), (both | {"amx_tile", "amx_int8", "amx_bf16"}, None)):
        monkeypatch.setattr(library, "features", lambda features=features: frozenset(features))
        assert dense_kernels(dtype) == expected


@has_int8
def test_processors_that_cannot_round_to_bfloat16_by_an_instruction_round_alike(tmp_path, monkeypatch):
    """Those have VNNI alone."""
    monkeypatch.setenv("CXX", "g++ '-D__builtin_cpu_supports(name)=false'")
    without = ctypes.CDLL(str(library_file(tmp_path)))
    declare(without)
    (weight, _), bias_F, hidden_ND = made(97, 130, 68, torch.bfloat16)
    hidden_ND[3, 7] = torch.nan
    hidden_ND[4] = 0
    for activation in (None, F.relu, F.gelu, gelu_tanh):
        expected = weight.product(hidden_ND, bias_F, activation)
        found = replace(weight, library=without).product(hidden_ND, bias_F, activation)
        found.masked_fill_(found.abs() < 2**-126, 0)  # which the instruction takes for zeros
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
