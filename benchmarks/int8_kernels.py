"""The compiled kernels against plain torch, in turns: int8 layers, attention of texts, attention of a step.

    python -m benchmarks.int8_kernels --threads 1

Microseconds, the least of many. Operations a second are of the products alone, by the kernel.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F

from batchloom.models.generation.memory.cpu.aged_pools import AgedPools
from batchloom.models.generation.memory.cpu.attention import StepAttention
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool
from batchloom.models.generation.memory.cpu.fused import FusedStepAttention
from batchloom.models.generation.memory.prefill import split_memories
from batchloom.models.layers import int8, product_attention
from batchloom.models.layers.feedforward import Activation, gelu_tanh
from batchloom.models.layers.native.library import bfloat16_kernels, dense_kernels
from batchloom.models.layers.product_attention import ProductAttention
from benchmarks import record

LAYERS: tuple[tuple[int, int, Activation | None], ...] = (
    *((768, 768, None), (768, 2304, None), (768, 3072, F.gelu), (3072, 768, None)),
    *((1024, 1024, None), (1024, 4096, gelu_tanh), (4096, 1024, None)),
)
ROWS = (1, 16, 32, 64, 128, 512)
TEXTS = ((16, 64), (64, 16), (128, 8), (300, 4), (1000, 1))
HEADS, HEAD_DIM = 12, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    record.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if dense_kernels(torch.bfloat16) is None:
        raise SystemExit("No kernels here: no compiler, AMX, or a processor without AVX-512, VNNI and bfloat16.")
    with torch.inference_mode():
        figures = [figure for pair in (*products(), *texts(), *steps()) for figure in pair]
    title, workload = "compiled kernels and plain torch on a CPU", {"threads": options.threads, "heads": HEADS}
    record.write(options.results, "int8_kernels", title, workload, figures)


Pair = tuple[record.Figure, record.Figure]
"""Of plain torch and of the kernel."""


def products() -> Iterator[Pair]:
    for num_inputs, num_outputs, activation in LAYERS:
        scale_F = torch.full((num_outputs,), 0.01)
        integers_FD = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8)
        kernel, plain = int8.packed(integers_FD, scale_F), int8.for_operator(integers_FD, scale_F)
        bias_F = torch.randn(num_outputs).bfloat16()
        for num_rows in ROWS:
            hidden_ND = torch.randn(num_rows, num_inputs).bfloat16()
            both = in_turns(
                lambda: plain.product(hidden_ND, bias_F, activation),  # noqa: B023
                lambda: kernel.product(hidden_ND, bias_F, activation),  # noqa: B023
            )
            yield shown(
                f"int8 {num_inputs} to {num_outputs}, {num_rows} rows", both, 2 * num_rows * num_inputs * num_outputs
            )


def texts() -> Iterator[Pair]:
    for length, number in TEXTS:
        lengths = [length] * number
        q_NHK, k_NHK, v_NHK = torch.randn(length * number, 3, HEADS, HEAD_DIM).bfloat16().unbind(1)
        attention = ProductAttention(lengths, lengths, causal=False)

        def plain() -> object:
            with patch.object(product_attention, "dense_kernels", lambda _: None):
                return attention(q_NHK, k_NHK, v_NHK, HEAD_DIM**-0.5)  # noqa: B023

        both = in_turns(plain, lambda: attention(q_NHK, k_NHK, v_NHK, HEAD_DIM**-0.5))  # noqa: B023
        yield shown(f"attention of {number} texts of {length}", both, 4 * number * length**2 * HEADS * HEAD_DIM)


def steps() -> Iterator[Pair]:
    """Cross-attention of a step over 32 documents; so many layers that their keys and values are not in the cache."""
    library, num_documents, num_tokens, num_layers = bfloat16_kernels(), 32, 215, 6
    assert library is not None
    packed = torch.randn(num_layers, 2, num_documents * num_tokens, HEADS, HEAD_DIM).bfloat16()
    own = split_memories([(k_NHK, v_NHK) for k_NHK, v_NHK in packed], [num_tokens] * num_documents, 0, None)
    for width in (1, 4):
        pools = AgedPools(
            lambda: EntryPool(num_layers, HEADS, HEAD_DIM, width, torch.empty(0).bfloat16(), None)  # noqa: B023
        )
        pools.extend(num_documents)
        rows = pools.rows([(memory,) for memory in own for _ in range(width)])
        position_N = torch.zeros(num_documents * width, dtype=torch.long)
        q_NHK = torch.randn(num_documents * width, HEADS, HEAD_DIM).bfloat16()
        plain, kernel = StepAttention(rows, position_N, True), FusedStepAttention(library, rows, position_N, True)
        both = in_turns(
            lambda: [plain.cross_attend(layer, q_NHK) for layer in range(num_layers)],  # noqa: B023
            lambda: [kernel.cross_attend(layer, q_NHK) for layer in range(num_layers)],  # noqa: B023
        )
        yield shown(
            f"cross-attention of a step, {width} rows each", both, 4 * len(q_NHK) * num_tokens * 768 * num_layers
        )


def in_turns(plain: Callable[[], object], kernel: Callable[[], object], turns: int = 15) -> tuple[float, float]:
    """Return the least seconds of each."""
    timed: dict[Callable[[], object], list[float]] = {plain: [], kernel: []}
    for _ in range(turns):
        for run, seconds in timed.items():
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(timed[plain]), min(timed[kernel])


def shown(name: str, seconds: tuple[float, float], num_operations: int) -> Pair:
    plain, kernel = seconds
    speed = num_operations / kernel / 1e9
    print(
        f"{name:45s} {plain * 1e6:9.0f} {kernel * 1e6:9.0f}  {plain / kernel:5.2f} times  {speed:5.0f} G/s", flush=True
    )
    return (
        record.Figure(system="plain torch", what=name, value=plain * 1e6, unit="us"),
        record.Figure(system="kernel", what=name, value=kernel * 1e6, unit="us"),
    )


if __name__ == "__main__":
    main()
