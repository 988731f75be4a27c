"""Peak memory of loading a sharded checkpoint of about 1 GB, from a local disk and through fsspec.

Each load runs in a process of its own, which samples its private memory (VmRSS less file-backed pages, which the kernel
drops at will) every few milliseconds. The bound is the model and one tensor.

    python -m benchmarks.loading_memory
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import record

SHARDS = 4
CONFIG = {
    "model_type": "bart",
    "architectures": ["BartForConditionalGeneration"],
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
}


def write_checkpoint(folder: Path) -> int:
    """Random float32 weights in shards with an index; returns their bytes."""
    import transformers

    with torch.device("meta"):
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**CONFIG))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if "embed_tokens" not in name}
    shapes |= {"model.shared.weight": torch.Size((50265, 1024)), "final_logits_bias": torch.Size((1, 50265))}
    names, weight_map, num_bytes = sorted(shapes), {}, 0
    for number in range(SHARDS):
        file_name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        shard = {name: torch.randn(shapes[name]) * 0.02 for name in names[number::SHARDS]}
        save_file(shard, folder / file_name)
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
        weight_map |= dict.fromkeys(shard, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return num_bytes


def private_bytes() -> int:
    """Anonymous memory of this process; pages of mapped files are the kernel's and not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux")


@contextmanager
def watching() -> Iterator[list[int]]:
    """Private bytes every few milliseconds, and once more at the end."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        seen.append(private_bytes())


def load(uri: str, dtype: str) -> None:
    """Loads in this process and prints base, peak and final bytes as JSON."""
    from batchloom import models

    if uri.startswith("local://"):  # an fsspec file system that is not the local one to us
        import fsspec
        from fsspec.implementations.dirfs import DirFileSystem

        class ElsewhereFileSystem(DirFileSystem):
            protocol = "elsewhere"

            def __init__(self, **options: object) -> None:
                super().__init__(path="/", fs=fsspec.filesystem("file"), **options)

        fsspec.register_implementation("elsewhere", ElsewhereFileSystem)
        uri = uri.replace("local://", "elsewhere://")
    torch.randn(8, 8) @ torch.randn(8, 8)
    base, started = private_bytes(), time.perf_counter()
    with watching() as seen:
        model = models.load_model(uri, dtype=dtype, device="cpu")
    figures = {"base": base, "peak": max(seen), "final": seen[-1], "seconds": time.perf_counter() - started}
    print(json.dumps({**figures, "class": type(model).__name__}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs=2, metavar=("URI", "DTYPE"), help=argparse.SUPPRESS)
    record.add_options(parser)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_checkpoint(Path(folder))
        largest = 50265 * 1024 * 4
        print(f"checkpoint {num_bytes / 1e9:.2f} GB in {SHARDS} shards, largest tensor {largest / 1e9:.2f} GB, float32")
        figures = []
        for where, uri in (("local disk", folder), ("fsspec", f"local://{folder}")):
            for dtype in ("float32", "bfloat16", "int8"):
                command = [sys.executable, "-m", "benchmarks.loading_memory", "--load", uri, dtype]
                measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                peak, final = (measured[key] - measured["base"] for key in ("peak", "final"))
                print(
                    f"{where:10s} as {dtype:8s}: peak {peak / 1e9:.2f} GB, afterwards {final / 1e9:.2f} GB, "
                    f"{measured['seconds']:.1f} s"
                )
                own = {"system": "batchloom", "dtype": dtype, "settings": where}
                figures.append(record.Figure(what="peak while loading", value=peak, unit="bytes", **own))
                figures.append(record.Figure(what="after loading", value=final, unit="bytes", **own))
                figures.append(record.Figure(what="loading", value=measured["seconds"], unit="s", **own))
    title = f"loading a checkpoint of {num_bytes / 1e9:.2f} GB in float32"
    workload = {"bytes": num_bytes, "shards": SHARDS, "largest_tensor": largest}
    record.write(arguments.results, "loading_memory", title, workload, figures)


if __name__ == "__main__":
    main()
