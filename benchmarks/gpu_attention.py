"""One step's paged attention on a GPU: the fused kernel by its settings, plain torch, and the time of the bytes.

    python -m benchmarks.gpu_attention

Rows and prompts as in benchmarks/gpu.py, one layer, bfloat16; arrays of many layers in turn, so that no layer's keys
are in the cache from the last time.
"""

import argparse
import itertools
import statistics

import numpy as np
import torch

from batchloom.models.generation.memory.gpu import fused
from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, BlockStore
from batchloom.models.generation.memory.gpu.tables import PromptBlocks, prompt_table, read_shapes, write_reads
from benchmarks import record
from benchmarks.gpu import bytes_a_second

CASES = {  # prompts, readers of each, their median length, heads, head_dim, with ALiBi
    "bart-large": (512, 1, 301, 16, 64, False),
    "bart-large, beam 4": (128, 4, 215, 16, 64, False),
    "bloom-560m": (512, 1, 144, 16, 64, True),
    "bloom-7b1": (512, 1, 144, 32, 128, True),
    "8 long prompts": (8, 1, 1000, 16, 64, False),
}
NUM_LAYERS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    record.add_options(parser)
    options, figures = parser.parse_args(), []
    device = torch.device("cuda", 0)
    print(torch.cuda.get_device_name(device), f"torch {torch.__version__}")
    speed = bytes_a_second(device)
    for name, (num_prompts, width, length, num_heads, head_dim, has_alibi) in CASES.items():
        like = torch.empty(0, dtype=torch.bfloat16, device=device)
        store = BlockStore(NUM_LAYERS, num_heads, head_dim, like)
        store.allow_readers(width)
        lengths = np.random.default_rng(0).lognormal(np.log(length), 0.4, num_prompts).astype(int).clip(1, 1023)
        num_blocks = [-(-int(own) // BLOCK_SIZE) for own in lengths]
        store.reserve(sum(num_blocks))
        prompts = [PromptBlocks(store.take(num), int(own)) for num, own in zip(num_blocks, lengths, strict=True)]
        for layer in store.layers:
            layer.normal_()
        store.descent_BRS.fill_(True)
        rows = [prompt for prompt in prompts for _ in range(width)]
        table = prompt_table(rows)
        shapes = read_shapes(len(rows), store.end, table.blocks_NM.shape[1], width)
        arrays = [np.empty(shape, dtype=np.int64) for shape in shapes]
        write_reads([table], arrays)
        reads = BlockReads(*(torch.from_numpy(array).to(device) for array in arrays))
        q_NHK = torch.randn(len(rows), num_heads, head_dim, dtype=torch.bfloat16, device=device)
        position_N = torch.full((len(rows),), 2000, device=device)
        slopes = torch.rand(num_heads, device=device) if has_alibi else None
        floor = 2 * int(lengths.sum()) * num_heads * head_dim * 2 / speed * 1e6
        plain = BlockReader(store, reads, position_N, slopes)
        expected = plain.attend(0, q_NHK).float()
        plain_us = microseconds(plain, q_NHK)
        print(f"{name}: bytes {floor:.0f} us, plain {plain_us:.0f} us", flush=True)
        figures.append(record.Figure(system="floor", what=f"{name}: its bytes", value=floor, unit="us"))
        figures.append(record.Figure(system="plain torch", what=f"{name}: a layer", value=plain_us, unit="us"))
        for num_bytes, num_warps in itertools.product((4096, 8192, 16384, 32768), (1, 2, 4, 8)):
            fused.BYTES_OF_MANY = fused.BYTES_OF_FEW = num_bytes
            fused.WARPS_OF_MANY = fused.WARPS_OF_FEW = num_warps
            reader = fused.FusedReader(store, reads, position_N, slopes)
            error = (reader.attend(0, q_NHK).float() - expected).abs().max().item()
            took = microseconds(reader, q_NHK)
            settings = f"{num_bytes} bytes, {num_warps} warps"
            print(f"  {settings}: {took:.0f} us, {took / floor:.2f} times; differs by {error:.4f}", flush=True)
            own = {"system": "batchloom", "what": f"{name}: a layer", "settings": settings}
            figures.append(record.Figure(value=took, unit="us", **own))
    title, workload = "paged attention of a step and a layer", {"dtype": "bfloat16", "layers": NUM_LAYERS}
    record.write(options.results, "gpu-attention", title, workload, figures, str(device))


def microseconds(reader: BlockReader, q_NHK: torch.Tensor) -> float:
    """The median time of a layer, in a graph of all layers."""
    for layer in range(NUM_LAYERS):
        reader.attend(layer, q_NHK)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(NUM_LAYERS):
            reader.attend(layer, q_NHK)
    times = []
    for _ in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / NUM_LAYERS * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
