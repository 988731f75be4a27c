"""Paged attention as one Triton kernel: each row goes through its own blocks, and nothing is written but the result.

It reads what `BlockReader` reads and is tested against it. Each key and value is fetched once for each row that sees
it; rows that share a prompt run side by side, so all but the first find it in the GPU's cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, NULL_BLOCK, BlockStore
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

    def attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over all blocks that each row reads: [N, H, K]."""
        store, reads = self._store, self._reads
        keys, values = store.layers[layer]
        num_rows, num_heads, head_dim = q_NHK.shape
        q_NHK = q_NHK.contiguous()
        result_NHK = torch.empty_like(q_NHK)
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
                head_dim**-0.5,
                NUM_COLUMNS=reads.table_NM.shape[1],
                NUM_READERS=store.num_readers,
                BLOCK_SIZE=BLOCK_SIZE,
                NULL_BLOCK=NULL_BLOCK,
                HEAD_DIM=head_dim,
                PADDED_DIM=triton.next_power_of_2(head_dim),
                AT_ONCE=blocks_at_once,
                HAS_ALIBI=has_alibi,
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
    FusedReader(store, reads, numbers[0], None).attend(0, like)
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
    scale,
    NUM_COLUMNS: tl.constexpr,
    NUM_READERS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NULL_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    """Attend for one row and head. In float32, whatever the arrays are; the softmax is made as its scores come in."""
    row, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    dim_K = tl.arange(0, PADDED_DIM)
    is_dim_K = dim_K < HEAD_DIM
    own = (row * num_heads + head) * HEAD_DIM
    q_K = tl.load(q_NHK + own + dim_K, mask=is_dim_K, other=0.0).to(tl.float32) * scale
    entry_S = tl.arange(0, AT_ONCE * BLOCK_SIZE)  # S: the entries of the blocks at hand
    offset_S = entry_S % BLOCK_SIZE
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
    tl.store(result_NHK + own + dim_K, result_K.to(result_NHK.dtype.element_ty), mask=is_dim_K)
