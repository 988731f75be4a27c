"""Paged attention as one Triton kernel: each row goes through its own blocks, and nothing is written but the result.

It reads what `BlockReader` reads and is tested against it. Each key and value is fetched once for each row that sees
it; rows that share a prompt run side by side, so all but the first find it in the GPU's cache. A new entry is seen by
its own row alone: the program that writes it has it in registers, and no program reads what another one writes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads, BlockWrites
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, NULL_BLOCK, PADDING_BLOCK, BlockStore
from batchloom.models.transfers import launching_on

# Keys and values that a program fetches together, and its warps, by what benchmarks/gpu_attention.py found on an H200:
# with many rows small programs, of which many run at once; few rows must fill the device by themselves.
MANY = 1024  # programs: rows times heads
BYTES_OF_MANY, WARPS_OF_MANY = 8192, 1
BYTES_OF_FEW, WARPS_OF_FEW = 32768, 8


class FusedReader(BlockReader):
    """One step's attention over a store."""

    def __init__(self, store: BlockStore, reads: BlockReads, position_N: Tensor, alibi_slopes: Tensor | None) -> None:
        self._store, self._reads = store, reads
        self._position_N, self._alibi_slopes = position_N, alibi_slopes

    def append(self, layer: int, writes: BlockWrites, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new entries' keys and values, and return attention with them among what each row reads.

        Queries, keys and values lie alike, as the views of one product do. Padding rows get their own values.
        """
        assert q_NHK.stride() == k_NHK.stride() == v_NHK.stride()
        return self._launch(layer, q_NHK, (k_NHK, v_NHK, writes.block_N, writes.offset_N))

    def attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over all blocks that each row reads: [N, H, K]."""
        return self._launch(layer, q_NHK, None)

    def _launch(self, layer: int, q_NHK: Tensor, new: tuple[Tensor, Tensor, Tensor, Tensor] | None) -> Tensor:
        """Run the kernel; `new`: keys, values, blocks and offsets of new entries, if there are any."""
        store, reads = self._store, self._reads
        keys, values = store.layers[layer]
        num_rows, num_heads, head_dim = q_NHK.shape
        assert q_NHK.stride(2) == 1
        result_NHK = q_NHK.new_empty(q_NHK.shape)
        has_alibi = self._alibi_slopes is not None
        blocks_at_once, num_warps = self._settings(q_NHK)
        with launching_on(q_NHK.device):
            attend_kernel[(num_rows, num_heads)](
                q_NHK,
                keys,
                values,
                result_NHK,
                reads.table_NM,
                reads.place_NM,
                reads.length_N,
                reads.count_B,
                store.descent_BRS,
                store.position_BS,
                self._position_N,
                self._alibi_slopes if has_alibi else q_NHK,
                *(new or (q_NHK, q_NHK, reads.length_N, reads.length_N)),
                q_NHK.stride(0),
                q_NHK.stride(1),
                head_dim**-0.5,
                NUM_COLUMNS=reads.table_NM.shape[1],
                NUM_READERS=store.num_readers,
                BLOCK_SIZE=BLOCK_SIZE,
                NULL_BLOCK=NULL_BLOCK,
                HEAD_DIM=head_dim,
                PADDED_DIM=triton.next_power_of_2(head_dim),
                AT_ONCE=blocks_at_once,
                HAS_ALIBI=has_alibi,
                APPENDS=new is not None,
                num_warps=num_warps,
            )
        return result_NHK

    def _settings(self, q_NHK: Tensor) -> tuple[int, int]:
        """Return how many blocks a program reads at once, a power of two, and its number of warps."""
        num_rows, num_heads, head_dim = q_NHK.shape
        is_many = num_rows * num_heads >= MANY
        num_bytes, num_warps = (BYTES_OF_MANY, WARPS_OF_MANY) if is_many else (BYTES_OF_FEW, WARPS_OF_FEW)
        block_bytes = BLOCK_SIZE * triton.next_power_of_2(head_dim) * q_NHK.element_size()
        return max(1, num_bytes // block_bytes), num_warps


def try_out(device: torch.device) -> None:
    """Run the kernel once. Raises: whatever Triton and the compilers that it calls raise."""
    like = torch.zeros(1, 1, 16, device=device)
    store = BlockStore(1, 1, 16, like)
    numbers = torch.zeros(1, 1, dtype=torch.long, device=device)
    reads = BlockReads(numbers, numbers[0], numbers, numbers, numbers[0])
    writes = BlockWrites(numbers[0] + PADDING_BLOCK, numbers[0], numbers[0])
    FusedReader(store, reads, numbers[0], None).append(0, writes, like, like, like)
    torch.cuda.synchronize(device)


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    q_NHK,
    k_BHSK,
    v_BHSK,
    result_NHK,
    table_NM,
    place_NM,
    length_N,
    count_B,
    descent_BRS,
    position_BS,
    position_N,
    slope_H,
    new_k_NHK,
    new_v_NHK,
    new_block_N,
    new_offset_N,
    row_stride,
    head_stride,
    scale,
    NUM_COLUMNS: tl.constexpr,
    NUM_READERS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NULL_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    APPENDS: tl.constexpr,
):
    """Attend for one row and head. In float32, whatever the arrays are; the softmax is made as its scores come in."""
    row, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    dim_K = tl.arange(0, PADDED_DIM)
    is_dim_K = dim_K < HEAD_DIM
    own_K = row.to(tl.int64) * row_stride + head * head_stride + dim_K
    q_K = tl.load(q_NHK + own_K, mask=is_dim_K, other=0.0).to(tl.float32) * scale
    entry_S = tl.arange(0, AT_ONCE * BLOCK_SIZE)  # S: the entries of the blocks at hand
    offset_S = entry_S % BLOCK_SIZE
    if APPENDS:
        new_k_K = tl.load(new_k_NHK + own_K, mask=is_dim_K, other=0.0)
        new_v_K = tl.load(new_v_NHK + own_K, mask=is_dim_K, other=0.0)
        new_block, new_offset = tl.load(new_block_N + row), tl.load(new_offset_N + row)
        new_at_K = ((new_block * num_heads + head) * BLOCK_SIZE + new_offset) * HEAD_DIM + dim_K
        tl.store(k_BHSK + new_at_K, new_k_K, mask=is_dim_K)
        tl.store(v_BHSK + new_at_K, new_v_K, mask=is_dim_K)
        largest = tl.sum(new_k_K.to(tl.float32) * q_K, 0)  # its distance is 0, and so is ALiBi's share
        total = tl.exp(largest - largest)  # 1, or NaN where the score is not finite
        sum_K = new_v_K.to(tl.float32) * total
    else:
        largest = -1e30  # finite: a row that sees nothing, as of padding, has weights of zero and no NaN
        total = 0.0
        sum_K = tl.zeros([PADDED_DIM], dtype=tl.float32)
    if HAS_ALIBI:
        slope = tl.load(slope_H + head).to(tl.float32)
        position = tl.load(position_N + row).to(tl.float32)
    length = tl.load(length_N + row)
    for column in range(0, length, AT_ONCE):
        column_S = column + entry_S // BLOCK_SIZE
        is_block_S = column_S < length
        at_S = row * NUM_COLUMNS + column_S
        block_S = tl.load(table_NM + at_S, mask=is_block_S, other=NULL_BLOCK)
        place_S = tl.load(place_NM + at_S, mask=is_block_S, other=0)
        count_S = tl.load(count_B + block_S, mask=is_block_S, other=0)
        is_written_S = offset_S < count_S
        descent_S = tl.load(
            descent_BRS + (block_S * NUM_READERS + place_S) * BLOCK_SIZE + offset_S, mask=is_written_S, other=0
        )
        sees_S = is_written_S & (descent_S != 0)
        if APPENDS:
            sees_S = sees_S & ((block_S != new_block) | (offset_S != new_offset))
        where_SK = (((block_S * num_heads + head) * BLOCK_SIZE + offset_S) * HEAD_DIM)[:, None] + dim_K[None, :]
        sees_SK = sees_S[:, None] & is_dim_K[None, :]
        k_SK = tl.load(k_BHSK + where_SK, mask=sees_SK, other=0.0).to(tl.float32)
        v_SK = tl.load(v_BHSK + where_SK, mask=sees_SK, other=0.0).to(tl.float32)
        score_S = tl.sum(k_SK * q_K[None, :], 1)
        if HAS_ALIBI:
            position_S = tl.load(position_BS + block_S * BLOCK_SIZE + offset_S, mask=sees_S, other=0.0)
            score_S += slope * (position_S - position)
        score_S = tl.where(sees_S, score_S, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score_S, 0))
        weight_S = tl.exp(score_S - new_largest)
        shrinks = tl.exp(largest - new_largest)
        total = total * shrinks + tl.sum(weight_S, 0)
        sum_K = sum_K * shrinks + tl.sum(weight_S[:, None] * v_SK, 0)
        largest = new_largest
    result_K = sum_K / tl.maximum(total, 1e-30)
    result_at_K = (row * num_heads + head) * HEAD_DIM + dim_K
    tl.store(result_NHK + result_at_K, result_K.to(result_NHK.dtype.element_ty), mask=is_dim_K)
