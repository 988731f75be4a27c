"""Attention of one decode step by the compiled kernel: all of a step's prompts and pools, a call each and layer.

Scores and sums are in float32, and a decoder-only model's prompt and history share one softmax; StepAttention, its
oracle, rounds scores to bfloat16 and merges parts.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.attention import PoolRows, shared
from batchloom.models.generation.memory.cpu.entry_pool import PoolStep
from batchloom.models.generation.memory.prompt_memory import PromptMemory
from batchloom.models.layers.native.signatures import Pool, Step

Memories = Sequence[PromptMemory]


class _Prompts:
    """What each unit reads of prompts: `unit_U6` as `Unit` of attention.cpp, `segment_LS4` as its `Segment`, by layer.

    `units`: of each one the first row, the number of rows, the place and the number of entries; `memories` of each.
    """

    def __init__(self, units: Sequence[tuple[int, int, int, int]], memories: Sequence[Memories]) -> None:
        first, rows = 0, []
        for (first_row, num_rows, place, num_entries), own in zip(units, memories, strict=True):
            rows.append((first_row, num_rows, first, len(own), place, num_entries))
            first += len(own)
        self.unit_U6 = torch.tensor(rows, dtype=torch.long).view(-1, 6)
        self.segment_LS4: Tensor | None = None
        self._segments = segments = [memory for own in memories for memory in own]  # whose addresses are in use
        if segments:
            sizes_S2 = torch.tensor([(one.num_tokens, one.end - one.num_tokens) for one in segments])
            addresses_LS2 = torch.stack([one.addresses_L2 for one in segments], dim=1)
            self.segment_LS4 = torch.cat((addresses_LS2, sizes_S2.expand_as(addresses_LS2)), dim=2)


class FusedStepAttention:
    """As StepAttention, for bfloat16. `position_N`: the position of each row's new token."""

    def __init__(
        self,
        library: ctypes.CDLL,
        pool_rows: Sequence[PoolRows],
        position_N: Tensor,
        crosses: bool,
        alibi_slopes: Tensor | None = None,
    ) -> None:
        self._library, self._crosses = library, crosses
        self._slopes_H = None if alibi_slopes is None else alibi_slopes.float().contiguous()
        self._position_N = position_N.contiguous()
        self._pools: list[tuple[PoolStep, slice, _Prompts]] = []
        first = 0
        for own in pool_rows:
            width = own.pool.width
            rows = slice(first, first + own.pool.num_units * width)
            step = own.pool.begin_step(position_N[rows][::width], for_kernel=True)
            num_entries_G = (step.entry_GB[:, -1] + 1).tolist()
            units = [(unit * width, width, place, num_entries_G[place]) for unit, place in enumerate(own.pool.places)]
            none: Memories = ()
            memories = [none if crosses else own.prompts[unit * width] for unit in range(len(units))]
            self._pools.append((step, rows, _Prompts(units, memories)))
            first = rows.stop
        self._cross: _Prompts | None = None
        if crosses:
            groups = shared([memories[0] for own in pool_rows for memories in own.prompts])
            units = [(rows.start, rows.stop - rows.start, 0, 0) for _, rows in groups]
            self._cross = _Prompts(units, [(memory,) for memory, _ in groups if memory is not None])

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new keys and values, and return self-attention: [N, H, K]."""
        attended_NHK = q_NHK.new_empty(q_NHK.shape)
        for step, rows, prompts in self._pools:
            k_GHEK, v_GHEK = step.keys_values[:, layer]
            own_k_NHK, own_v_NHK = k_NHK[rows], v_NHK[rows]
            assert own_k_NHK.stride() == own_v_NHK.stride(), "keys and values are views of one product"
            assert own_k_NHK.stride(2) == 1, "the numbers of a head follow each other"
            assert k_GHEK.stride(2) == k_GHEK.shape[3], "entries follow each other"
            assert step.descent_GBE.is_contiguous(), "the kernel reads places by their size"
            assert step.position_GE.is_contiguous(), "the kernel reads places by their size"
            pool = Pool(
                k_GHEK.data_ptr(),
                v_GHEK.data_ptr(),
                *k_GHEK.stride()[:2],
                step.descent_GBE.shape[2],
                step.descent_GBE.data_ptr(),
                step.position_GE.data_ptr(),
                step.entry_GB.data_ptr(),
                own_k_NHK.data_ptr(),
                own_v_NHK.data_ptr(),
                *own_k_NHK.stride()[:2],
            )
            self._call(layer, q_NHK[rows], prompts, attended_NHK[rows], self._position_N[rows], pool)
        return attended_NHK

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over each row's encoder output: [N, H, K]."""
        assert self._cross is not None, "this context was made without an encoder"
        attended_NHK = q_NHK.new_empty(q_NHK.shape)
        self._call(layer, q_NHK, self._cross, attended_NHK, self._position_N, None)
        return attended_NHK

    def _call(
        self, layer: int, q_NHK: Tensor, prompts: _Prompts, out_NHK: Tensor, position_N: Tensor, pool: Pool | None
    ) -> None:
        assert q_NHK.dtype == torch.bfloat16, "the kernel is for bfloat16"
        assert q_NHK.stride(2) == 1, "the numbers of a head follow each other"
        slopes = None if self._slopes_H is None else self._slopes_H.data_ptr()
        step = Step(
            q_NHK.data_ptr(),
            *q_NHK.stride()[:2],
            *q_NHK.shape[1:],
            q_NHK.shape[2] ** -0.5,
            slopes,
            position_N.data_ptr(),
            out_NHK.data_ptr(),
        )
        self._library.step_attention(
            ctypes.byref(step),
            prompts.unit_U6.data_ptr(),
            len(prompts.unit_U6),
            None if prompts.segment_LS4 is None else prompts.segment_LS4[layer].data_ptr(),
            None if pool is None else ctypes.byref(pool),
            torch.get_num_threads(),
        )
