"""A compiled library is tried on a few numbers before it is trusted: compilers and emulators have faults of their own.

It takes some milliseconds a process. Each kernel is compared with its formula in float32, in shapes that reach all of
its blocks of rows and the ends of its panels.
"""

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchloom.models.layers.feedforward import gelu_tanh
from batchloom.models.layers.native import bfloat16, int8
from batchloom.models.layers.native.build import BuildError
from batchloom.models.layers.native.norms import norm_of_sum
from batchloom.models.layers.native.packed_attention import attend_packed
from batchloom.models.layers.native.signatures import Pool, Step
from batchloom.models.layers.native.vocabulary import log_normalizers

MOST_OFF = 0.03
"""Of the size of what is expected: rounding is 0.002 in bfloat16 and 0.01 in int8, and what is compiled wrong is off by
more, or not finite."""
ROWS, OUTPUTS, INPUTS, HEADS, HEAD_DIM, KEYS = 6, 70, 67, 2, 20, 37
ACTIVATIONS = (None, F.relu, F.gelu, gelu_tanh)

Tried = tuple[str, Tensor, Tensor]
"""A kernel's name, what it computed, and what its formula gives."""


def check(library: ctypes.CDLL, multiplies_bfloat16: bool) -> None:
    """Raises: BuildError, which names the kernels that compute something else than their formulas."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other for a second
    try:
        tried = [*_int8_products(library), *(_in_bfloat16(library) if multiplies_bfloat16 else ())]
    finally:
        torch.set_num_threads(num_threads)
    wrong = sorted({name for name, found, expected in tried if not _off(found, expected) <= MOST_OFF})  # NaN: wrong
    if wrong:
        raise BuildError(f"what the compiler made computes wrong numbers ({', '.join(wrong)}); set CXX to another")


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def _int8_products(library: ctypes.CDLL) -> Iterator[Tried]:
    weight_FD, bias_F, hidden_ND = _normal((OUTPUTS, INPUTS), (OUTPUTS,), (ROWS, INPUTS))
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True) / 127
    weight = int8.panels(library, (weight_FD / scale_F1).round().to(torch.int8), scale_F1[:, 0])
    for dtype in (torch.float32, torch.bfloat16):
        hidden, bias = hidden_ND.to(dtype), bias_F.to(dtype)
        yield from _products("int8_product", weight, weight_FD, hidden, bias)


def _in_bfloat16(library: ctypes.CDLL) -> Iterator[Tried]:
    weight_FD, bias_F, hidden_ND = (x.bfloat16() for x in _normal((OUTPUTS, INPUTS), (OUTPUTS,), (ROWS, INPUTS)))
    yield from _products("bfloat16_product", bfloat16.panels(library, weight_FD), weight_FD, hidden_ND, bias_F)
    yield "log_normalizers", log_normalizers(library, weight_FD), weight_FD.float().logsumexp(-1)
    yield "norm_of_sum", *_norm_of_sum(library)
    yield from _packed_attention(library)
    for num_rows in (1, 2, 3, 4):
        yield "step_attention", *_step_attention(library, num_rows)


def _products(
    name: str, weight: bfloat16.Bfloat16Panels | int8.Int8Panels, weight_FD: Tensor, hidden_ND: Tensor, bias_F: Tensor
) -> Iterator[Tried]:
    for num_rows in range(1, ROWS + 1):
        activation = ACTIVATIONS[num_rows % len(ACTIVATIONS)]
        expected = F.linear(hidden_ND[:num_rows].float(), weight_FD.float(), bias_F.float())
        found = weight.product(hidden_ND[:num_rows], bias_F, activation)
        yield name, found, expected if activation is None else activation(expected)


def _norm_of_sum(library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
    norm = nn.LayerNorm(INPUTS, dtype=torch.bfloat16, device="cpu")
    residual_ND, update_ND = (x.bfloat16() for x in _normal(*[(ROWS, INPUTS)] * 2))
    sum_ND, normed_ND = norm_of_sum(library, residual_ND, update_ND, norm)
    expected_ND = residual_ND.float() + update_ND.float()
    both = torch.cat((expected_ND, F.layer_norm(expected_ND, norm.normalized_shape)))
    return torch.cat((sum_ND, normed_ND)), both


def _packed_attention(library: ctypes.CDLL) -> Iterator[Tried]:
    q_NHK, k_NHK, v_NHK = (x.bfloat16() for x in _normal(*[(KEYS, HEADS, HEAD_DIM)] * 3))
    for num_queries in range(1, ROWS + 1):
        found = attend_packed(library, q_NHK[-num_queries:], k_NHK, v_NHK, [(num_queries, KEYS)], True, 1.0)
        is_seen_TS = torch.ones(num_queries, KEYS, dtype=torch.bool, device="cpu").tril(KEYS - num_queries)
        yield "packed_attention", found, _attention(q_NHK[-num_queries:], k_NHK, v_NHK, is_seen_TS)


def _step_attention(library: ctypes.CDLL, num_rows: int) -> tuple[Tensor, Tensor]:
    """One unit: a prompt that all of its rows see, and a pool in which each sees its own new token."""
    new = (num_rows, HEADS, HEAD_DIM)
    *prompt, q_NHK, k_NHK, v_NHK = (x.bfloat16() for x in _normal(*[(KEYS, HEADS, HEAD_DIM)] * 2, *[new] * 3))
    k_HSK, v_HSK = (x.transpose(0, 1).contiguous() for x in prompt)
    pool_2HEK = k_NHK.new_zeros(2, HEADS, num_rows, HEAD_DIM)
    is_seen_BE = torch.eye(num_rows, dtype=torch.bool, device="cpu")
    entry_B = torch.arange(num_rows, device="cpu")
    out_NHK = torch.empty_like(q_NHK)
    step = Step(
        q_NHK.data_ptr(), *q_NHK.stride()[:2], HEADS, HEAD_DIM, 1.0, None, entry_B.data_ptr(), out_NHK.data_ptr()
    )
    pool = Pool(
        *(x.data_ptr() for x in pool_2HEK),
        *(pool_2HEK[0].numel(), num_rows * HEAD_DIM, num_rows),
        *(x.data_ptr() for x in (is_seen_BE, entry_B, entry_B, k_NHK, v_NHK)),
        *k_NHK.stride()[:2],
    )
    unit_6, segment_4 = torch.tensor(
        [[0, num_rows, 0, 1, 0, num_rows], [k_HSK.data_ptr(), v_HSK.data_ptr(), KEYS, 0, 0, 0]], device="cpu"
    )
    pointers = ctypes.byref(step), unit_6.data_ptr(), 1, segment_4.data_ptr(), ctypes.byref(pool)
    library.step_attention(*pointers, torch.get_num_threads())
    sees_TS = torch.cat((is_seen_BE.new_ones(num_rows, KEYS), is_seen_BE), dim=1)
    all_k_SHK, all_v_SHK = (torch.cat(both) for both in zip(prompt, (k_NHK, v_NHK), strict=True))
    return out_NHK, _attention(q_NHK, all_k_SHK, all_v_SHK, sees_TS)


def _attention(q_NHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, is_seen_TS: Tensor) -> Tensor:
    scores_HTS = torch.einsum("thk,shk->hts", q_NHK.float(), k_SHK.float())
    weights_HTS = scores_HTS.masked_fill_(~is_seen_TS, -torch.inf).softmax(-1)
    return torch.einsum("hts,shk->thk", weights_HTS, v_SHK.float())


def _normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random numbers, without a change to the state of torch's own."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
