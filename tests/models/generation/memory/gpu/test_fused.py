"""The fused kernel gives what plain attention over blocks gives; where no GPU is, Triton's interpreter runs it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not made for this platform")

from batchloom.models.generation.memory.gpu import fused, readers
from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads, BlockWrites, enter
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, PADDING_BLOCK, BlockStore
from batchloom.models.generation.memory.gpu.fused import FusedReader
from batchloom.models.generation.memory.gpu.tables import (
    PromptBlocks,
    concatenated,
    prompt_table,
    read_shapes,
    write_reads,
)

LENGTHS = (1, 70, 32, 33)


def filled(num_heads, head_dim, dtype, width=3, lengths=LENGTHS):
    """A store with prompts of `lengths` for `width` rows each, of which each row descends from entries of its own."""
    generator = torch.Generator().manual_seed(1)
    store = BlockStore(2, num_heads, head_dim, torch.empty(0, dtype=dtype))
    store.allow_readers(width)
    prompts = []
    for length in lengths:
        store.reserve(num := -(-length // BLOCK_SIZE))
        prompts.append(PromptBlocks(store.take(num), length))
    for layer in store.layers:
        layer.copy_(torch.randn(layer.shape, generator=generator))
    store.descent_BRS.copy_(torch.rand(store.descent_BRS.shape, generator=generator) < 0.7)
    store.descent_BRS[:, :, 0] = True
    for prompt in prompts:
        positions = np.arange(len(prompt.blocks) * BLOCK_SIZE, dtype=np.float32).reshape(-1, BLOCK_SIZE)
        store.position_BS[torch.from_numpy(prompt.blocks)] = torch.from_numpy(positions)
    rows = [prompt for prompt in prompts for _ in range(width)]
    num_rows = len(rows) + 2  # padding rows, which read nothing
    arrays = [np.empty(shape, dtype=np.int64) for shape in read_shapes(num_rows, store.end, 4, store.num_readers)]
    write_reads([concatenated([prompt_table(rows)])], arrays)
    position_N = torch.tensor([prompt.num_tokens + 5 for prompt in rows] + [0, 0])
    q_NHK = torch.randn((num_rows, num_heads, head_dim), generator=generator).to(dtype)
    return store, BlockReads(*map(torch.from_numpy, arrays)), position_N, q_NHK, len(rows)


# bfloat16: the plain way rounds scores and weights to 8 bits, the kernel only its result
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 64), (3, 12), (1, 128)])
@pytest.mark.parametrize("has_alibi", [False, True])
@pytest.mark.parametrize("many", [1, 1 << 30], ids=["many rows", "few rows"])
def test_the_kernel_gives_what_plain_attention_gives(
    monkeypatch, num_heads, head_dim, has_alibi, dtype, tolerance, many
):
    monkeypatch.setattr(fused, "MANY", many)
    store, reads, position_N, q_NHK, num_real = filled(num_heads, head_dim, dtype)
    slopes = 2.0 ** -torch.arange(1, num_heads + 1) if has_alibi else None
    for layer in range(2):
        found = FusedReader(store, reads, position_N, slopes).attend(layer, q_NHK)
        expected = BlockReader(store, reads, position_N, slopes).attend(layer, q_NHK)
        assert found.dtype == dtype
        assert torch.isfinite(found).all(), "a row that sees nothing must stay finite"
        torch.testing.assert_close(found[:num_real], expected[:num_real], atol=tolerance, rtol=tolerance)


def test_what_a_row_does_not_see_may_be_anything():
    """A neighbour's entries may be NaN, and an unwritten entry is whatever its block held before."""
    store, reads, position_N, q_NHK, num_real = filled(2, 16, torch.float32)
    expected = FusedReader(store, reads, position_N, None).attend(0, q_NHK)
    is_written_BS = (
        torch.arange(BLOCK_SIZE)
        < torch.nn.functional.pad(reads.count_B, (0, store.capacity - len(reads.count_B)))[:, None]
    )
    is_seen_BS = is_written_BS & store.descent_BRS.any(1)
    assert not is_seen_BS.all()
    for layer in store.layers:
        layer.masked_fill_(~is_seen_BS[None, :, None, :, None], torch.nan)
    found = FusedReader(store, reads, position_N, None).attend(0, q_NHK)
    assert torch.equal(found[:num_real], expected[:num_real])


def test_nan_that_a_row_sees_is_in_its_result_and_in_no_other():
    store, reads, position_N, q_NHK, _ = filled(2, 16, torch.float32)
    store.layers[0][0, int(reads.table_NM[3, 0]), 1, 0] = torch.nan  # a key of the second prompt's first token
    found = FusedReader(store, reads, position_N, None).attend(0, q_NHK)
    is_nan_NH = found.isnan().any(2)
    assert is_nan_NH[3:6, 1].all()
    assert is_nan_NH.sum() == 3


def with_new_entries(num_heads, head_dim, dtype, lengths, width):
    """As `filled`, and each row's new entry: the last `width` of each prompt are a row's each, and hold NaN so far.

    Queries, keys and values are views of one product: with an odd number of heads as BLOOM's lie, else as BART's.
    """
    store, reads, position_N, q_NHK, num_real = filled(num_heads, head_dim, dtype, width, lengths)
    places = np.tile(np.arange(width), len(lengths))
    entries = np.repeat(lengths, width) - width + places
    padding = [0] * (len(q_NHK) - num_real)
    table = reads.table_NM[torch.arange(num_real), torch.from_numpy(entries // BLOCK_SIZE)]
    writes = BlockWrites(
        block_N=torch.tensor([*table.tolist(), *(PADDING_BLOCK for _ in padding)]),
        offset_N=torch.tensor([*(entries % BLOCK_SIZE), *padding]),
        place_N=torch.tensor([*places, *padding]),
    )
    position_N[:num_real] = torch.from_numpy(entries)
    enter(store, writes, position_N)
    for layer in range(2):
        nan_NHK = torch.full_like(q_NHK, torch.nan)
        store.write(layer, writes.block_N, writes.offset_N, nan_NHK, nan_NHK)
    generator = torch.Generator().manual_seed(2)
    product = torch.randn(len(q_NHK), 3 * num_heads * head_dim, generator=generator).to(dtype)
    of_bloom = num_heads % 2
    parts = (num_heads, 3, head_dim) if of_bloom else (3, num_heads, head_dim)
    return store, reads, writes, position_N, product.view(-1, *parts).unbind(2 if of_bloom else 1), num_real


# Scores, weights and results of the plain way are rounded to the dtype, 11 or 8 bits; the kernel's results alone.
CLOSE = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("num_heads", "head_dim", "lengths", "width"),
    [(3, 5, (1,), 1), (2, 8, (32, 3, 65), 3), (1, 64, (33,), 4), (2, 100, (6, 40), 2), (1, 5, tuple(range(2, 37)), 2)],
    ids=["1 row", "9 rows", "4 rows across blocks", "4 rows", "70 rows"],
)
@pytest.mark.parametrize("has_alibi", [False, True])
def test_new_entries_are_written_and_seen_as_the_plain_way_does(num_heads, head_dim, has_alibi, lengths, width, dtype):
    store, reads, writes, position_N, qkv, num_real = with_new_entries(num_heads, head_dim, dtype, lengths, width)
    slopes = 2.0 ** -torch.arange(1, num_heads + 1) if has_alibi else None
    before = [layer.clone() for layer in store.layers]
    reader = FusedReader(store, reads, position_N, slopes)
    found, again = (reader.append(1, writes, *qkv) for _ in range(2))  # twice, as where a step is captured
    assert torch.equal(found, again)
    assert found.dtype == dtype
    assert found.isfinite().all(), "a new entry is not read from memory, and padding rows are finite"
    written, store.layers = store.layers, before
    expected = BlockReader(store, reads, position_N, slopes).append(1, writes, *qkv)
    torch.testing.assert_close(found[:num_real], expected[:num_real], atol=CLOSE[dtype], rtol=CLOSE[dtype])
    real = torch.arange(store.capacity) != PADDING_BLOCK
    for has, should_have in zip(written, store.layers, strict=True):  # of layer 0 nothing is written: NaN stays
        assert torch.equal(has[:, real].nan_to_num(9.0), should_have[:, real].nan_to_num(9.0))


def test_a_new_entry_that_is_not_finite_is_its_own_rows_trouble():
    store, reads, writes, position_N, (q_NHK, k_NHK, v_NHK), num_real = with_new_entries(
        2, 16, torch.float32, (1, 40), 1
    )
    k_NHK[0, 1, 3] = v_NHK[1, 0, 5] = torch.nan
    found = FusedReader(store, reads, position_N, None).append(0, writes, q_NHK, k_NHK, v_NHK)[:num_real]
    assert found.isnan().any(2).tolist() == [[False, True], [True, False]]


def test_the_kernel_is_all_that_is_launched(monkeypatch):
    """Queries, keys and values are not copied before, though they are views of one product."""
    store, reads, writes, position_N, qkv, _ = with_new_entries(2, 16, torch.float32, (5,), 1)
    launched = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            launched.append(str(func))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(fused, "attend_kernel", {(len(qkv[0]), 2): lambda *_, **__: launched.append("kernel")})
    with Operations():
        FusedReader(store, reads, position_N, None).append(0, writes, *qkv)
    assert launched[-1] == "kernel"
    assert all(name.startswith(("aten.new_empty", "aten.unbind")) for name in launched[:-1])


def test_where_triton_does_not_work_plain_attention_runs_and_the_log_says_why(monkeypatch, caplog):
    def fail(_):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(fused, "try_out", fail)
    assert readers.reader_on(SimpleNamespace(type="cuda")) is BlockReader
    assert "Triton does not work here (RuntimeError: Failed to find C compiler.)" in caplog.text
    monkeypatch.setitem(sys.modules, "batchloom.models.generation.memory.gpu.fused", None)
    assert readers.reader_on(SimpleNamespace(type="cuda")) is BlockReader
    assert readers.reader_on(torch.device("cpu")) is BlockReader


def test_the_kernel_is_tried_out(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    fused.try_out(torch.device("cpu"))  # the interpreter runs on CPUs
    assert waits == [torch.device("cpu")]
