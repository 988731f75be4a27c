"""The kernel's step attention is that of its oracle in float32, while beams move and units come and go."""

import random

import pytest
import torch

from batchloom.models.generation.memory.cpu.aged_pools import AgedPools
from batchloom.models.generation.memory.cpu.attention import StepAttention
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool
from batchloom.models.generation.memory.cpu.fused import FusedStepAttention
from batchloom.models.generation.memory.prefill import split_memories
from batchloom.models.layers.native.library import bfloat16_kernels

pytestmark = pytest.mark.skipif(
    bfloat16_kernels() is None, reason="no compiler, or a processor without AVX-512 and bfloat16"
)
H, LAYERS = 3, 2


def memories(lengths, start, head_dim, slopes, dtype):
    """Of prompts; equal numbers in every dtype."""
    generator = torch.Generator().manual_seed(sum(lengths))
    made = torch.randn(LAYERS, 2, sum(lengths), H, head_dim, generator=generator).bfloat16().to(dtype)
    return split_memories([(k_NHK, v_NHK) for k_NHK, v_NHK in made], lengths, start, slopes)


@pytest.mark.parametrize("head_dim", [64, 20, 72])
@pytest.mark.parametrize(("width", "crosses"), [(1, True), (3, True), (6, True), (1, False), (4, False)])
def test_steps_are_those_of_the_oracle(width, crosses, head_dim):
    torch.manual_seed(width)
    choice = random.Random(width)
    slopes = None if crosses else torch.tensor([0.5, 0.125, 0.03])
    dtypes = (torch.bfloat16, torch.float32)
    caches, prompts, positions = [], [], []
    for dtype in dtypes:
        like = torch.empty(0, dtype=dtype)
        caches.append(AgedPools(lambda like=like: EntryPool(LAYERS, H, head_dim, width, like, slopes)))
    prefix = [memories([9], 0, head_dim, slopes, dtype)[0] for dtype in dtypes]
    for _ in range(60):
        num_new = choice.choice((0, 0, 1, 2)) if positions else 2
        if num_new:
            lengths = [choice.randint(1, 40) for _ in range(num_new)]
            both = [memories(lengths, 0 if crosses else 9, head_dim, slopes, dtype) for dtype in dtypes]
            for cache in caches:
                cache.extend(num_new)
            # A decoder-only model's prompt is a common prefix, and what follows it where something does.
            for length, *own in zip(lengths, *both, strict=True):
                alone = not crosses and length % 3 == 0
                prompts.append(
                    [
                        (one,) if crosses else (first,) if alone else (first, one)
                        for first, one in zip(prefix, own, strict=True)
                    ]
                )
                positions.append(0 if crosses else 9 if alone else 9 + length)
        position_N = torch.tensor(positions).repeat_interleave(width)
        contexts = []
        for number, cache in enumerate(caches):
            pool_rows = cache.rows([own[number] for own in prompts for _ in range(width)])
            about = pool_rows, position_N, crosses, slopes
            contexts.append(StepAttention(*about) if number else FusedStepAttention(bfloat16_kernels(), *about))
        for layer in range(LAYERS):
            q_NHK, k_NHK, v_NHK = torch.randn(len(position_N), 3, H, head_dim).bfloat16().unbind(1)
            found = contexts[0].attend(layer, q_NHK, k_NHK, v_NHK)
            expected = contexts[1].attend(layer, q_NHK.float(), k_NHK.float(), v_NHK.float())
            # The kernel rounds its result alone, to 8 bits.
            torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=2**-8)
            if crosses:
                found, expected = contexts[0].cross_attend(layer, q_NHK), contexts[1].cross_attend(layer, q_NHK.float())
                torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=2**-8)
        positions = [position + 1 for position in positions]
        parents = torch.tensor([[choice.randrange(width) for _ in range(width)] for _ in positions])
        kept = [unit for unit in range(len(positions)) if choice.random() < 0.9]
        for cache in caches:
            cache.reorder(parents)
            cache.keep(kept)
        prompts, positions = [prompts[unit] for unit in kept], [positions[unit] for unit in kept]


@pytest.mark.parametrize("width", [1, 5])
def test_a_row_has_the_same_bits_alone_and_on_several_threads(width):
    own = memories([33, 17], 0, 64, None, torch.bfloat16)
    num_threads = torch.get_num_threads()

    def answers(units, threads):
        cache = AgedPools(lambda: EntryPool(LAYERS, H, 64, width, torch.empty(0, dtype=torch.bfloat16), None))
        cache.extend(len(units))
        generator = torch.Generator().manual_seed(1)
        tensors = torch.randn(4, 2 * width, 3, H, 64, generator=generator).bfloat16()
        torch.set_num_threads(threads)
        for step, q_k_v in enumerate(tensors):
            rows = torch.cat([q_k_v[unit * width : (unit + 1) * width] for unit in units])
            pool_rows = cache.rows([(own[unit],) for unit in units for _ in range(width)])
            context = FusedStepAttention(bfloat16_kernels(), pool_rows, torch.full((len(rows),), step), True)
            last = torch.stack((context.attend(0, *rows.unbind(1)), context.cross_attend(1, rows[:, 0])))
        return last

    try:
        together, alone, threaded = answers([0, 1], 1), answers([1], 1), answers([0, 1], 3)
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(together[:, width:], alone)
    assert torch.equal(together, threaded)


def test_what_is_not_finite_stays_with_its_unit():
    prompts = memories([5, 40, 3], 0, 64, None, torch.bfloat16)
    prompts[1].layers[0][0][1, 7, 3] = torch.nan
    cache = AgedPools(lambda: EntryPool(LAYERS, H, 64, 1, torch.empty(0, dtype=torch.bfloat16), None))
    cache.extend(3)
    context = FusedStepAttention(
        bfloat16_kernels(), cache.rows([(one,) for one in prompts]), torch.zeros(3).long(), True
    )
    q_NHK, k_NHK, v_NHK = torch.randn(3, 3, H, 64).bfloat16().unbind(1)
    found = context.cross_attend(0, q_NHK)
    assert found[1, 1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    k_NHK[2, 0, 5] = torch.inf
    found = context.attend(0, q_NHK, k_NHK, v_NHK)
    assert not found[2, 0].isfinite().any()
    assert found[:2].isfinite().all()
