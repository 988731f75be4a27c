"""What a rank reads and holds, and what a decode step costs, at 1, 2 and 4 ranks.

Random weights in the sizes of bart-base and bloom-560m, float32, gloo, one thread a rank. Bytes read are those that the
loader asks for, as an object store would count them; memory is a rank's private memory after loading and at its peak
meanwhile, less what it was before. Of these, and of the weights, the figures of the rank that has most; times are the
first rank's. A step's time in collectives is told apart: what the same messages take with nothing between them, and the
rest, waiting for other ranks.

    python -m benchmarks.tensor_parallel [--model bart-base] [--ranks 1 2 4]
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import record
from benchmarks.loading_memory import private_bytes, watching

MODELS: dict[str, dict[str, Any]] = {
    "bart-base": {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "vocab_size": 50265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
    },
    "bloom-560m": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "vocab_size": 250880,
        "hidden_size": 1024,
        "n_layer": 24,
        "n_head": 16,
        "eos_token_id": 2,
    },
}
ROWS, SOURCE_TOKENS, STEPS = 32, 64, 20


def write_checkpoint(config: dict[str, Any], folder: Path) -> int:
    """Random weights; returns their bytes."""
    import transformers

    with torch.device("meta"):
        kind = getattr(transformers, config["architectures"][0])
        model = kind(kind.config_class(**config))
    tensors = {name: torch.randn(p.shape) * 0.02 for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())


def run_rank(rank: int, size: int, folder: str, meeting: str, answers: Any) -> None:
    """Loads one rank's part and decodes; every rank does the same, so that no one has to be told."""
    from batchloom.models.checkpoints import tensors
    from batchloom.models.checkpoints.loading import load_for_rank
    from batchloom.models.generation.engine import Engine
    from batchloom.models.generation.params import GenerationParams
    from batchloom.models.ranks.group import SINGLE, Collectives, TensorParallel

    torch.set_num_threads(1)
    place = torch.device("cpu")
    collectives = (
        Collectives(torch.distributed.FileStore(f"{meeting}/file", size), rank, size, place).join()
        if size > 1
        else None
    )
    group = TensorParallel(rank=rank, size=size, collectives=collectives) if size > 1 else SINGLE
    num_read = 0
    read = tensors.read_bytes

    def counted(file: Any, start: int, stop: int) -> Any:
        nonlocal num_read
        num_read += stop - start
        return read(file, start, stop)

    tensors.read_bytes = counted
    before, began = private_bytes(), time.perf_counter()
    with watching() as seen:
        model = load_for_rank(folder, None, "float32", place, group)
    loaded = time.perf_counter() - began
    held, peak = seen[-1] - before, max(seen) - before
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if collectives is not None:
        _count_waiting(collectives)
    engine = Engine(model, max_slots=ROWS)
    params = GenerationParams(max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1, num_beams=1, do_sample=False)
    for row in range(ROWS):
        engine.add(row, [(row * 31 + token * 7) % 50000 + 4 for token in range(SOURCE_TOKENS)], params)
    engine.step()  # prompts, and the first token
    waiting.clear()
    began = time.perf_counter()
    for _ in range(STEPS - 1):
        engine.step()
    step = (time.perf_counter() - began) / (STEPS - 1)
    inside = sum(seconds for _, seconds in waiting) / (STEPS - 1)
    messages = [message for message, _ in waiting[: len(waiting) // (STEPS - 1)]]  # of a step; all are alike
    bare = _bare_seconds(messages) if collectives is not None else 0.0
    found = {
        "read": num_read,
        "held": held,
        "peak": peak,
        "weights": weights,
        "load": loaded,
        "step": step,
        "inside": inside,
    }
    answers.put((rank, {**found, "bare": bare, "num_messages": len(messages)}))
    if collectives is not None:
        collectives.close()


waiting: list[tuple[Any, float]] = []  # each collective of this process, as a call to repeat, and its seconds


def _count_waiting(collectives: Any) -> None:
    for name in ("reduce", "gather"):
        plain = getattr(collectives, name)

        def timed(tensor: torch.Tensor, *arguments: Any, plain: Any = plain) -> Any:
            began = time.perf_counter()
            result = plain(tensor, *arguments)
            repeated = partial(plain, torch.zeros_like(tensor), *arguments)
            waiting.append((repeated, time.perf_counter() - began))
            return result

        setattr(collectives, name, timed)


def _bare_seconds(messages: list[Any]) -> float:
    """The median of a few rounds."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for message in messages:
            message()
        rounds.append(time.perf_counter() - began)
    return sorted(rounds)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bart-base")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    record.add_options(parser)
    arguments = parser.parse_args()
    figures = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_checkpoint(MODELS[arguments.model], Path(folder))
        print(
            f"{arguments.model}: {num_bytes / 1e6:.0f} MB in float32; {ROWS} rows, {SOURCE_TOKENS} prompt tokens each"
        )
        for size in arguments.ranks:
            meeting = tempfile.mkdtemp(dir=folder)
            answers = spawn.Queue()
            ranks = [
                spawn.Process(target=run_rank, args=(rank, size, folder, meeting, answers)) for rank in range(size)
            ]
            for process in ranks:
                process.start()
            by_rank = dict(answers.get() for _ in ranks)
            for process in ranks:
                process.join()
            read, held, peak, weights = (
                max(found[key] for found in by_rank.values()) for key in ("read", "held", "peak", "weights")
            )
            first = by_rank[0]
            print(
                f"{size} ranks, each: asks for {read / 1e6:6.0f} MB ({read / num_bytes:.3f}), "
                f"weights {weights / 1e6:6.0f} MB ({weights / num_bytes:.3f}), "
                f"private memory {held / 1e6:6.0f} MB, {peak / 1e6:.0f} at the peak, loading {first['load']:.1f} s, "
                f"step {first['step'] * 1e3:.0f} ms, {first['inside'] * 1e3:.0f} ms of it in {first['num_messages']} "
                f"collectives ({first['bare'] * 1e3:.0f} ms bare)",
                flush=True,
            )
            for what, value, unit in (
                ("bytes asked for", read, "bytes"),
                ("weights", weights, "bytes"),
                ("memory", held, "bytes"),
                ("memory at the peak", peak, "bytes"),
                ("loading", first["load"], "s"),
                ("a step", first["step"], "s"),
                ("a step's time in collectives", first["inside"], "s"),
                ("the same messages alone", first["bare"], "s"),
            ):
                own = {"what": f"{what}, of a rank of {size}", "dtype": "float32"}
                figures.append(record.Figure(system="batchloom", value=value, unit=unit, **own))
    title = f"{arguments.model} on several ranks, {ROWS} rows of {SOURCE_TOKENS} tokens"
    workload = {"model": arguments.model, "weights": "random", "rows": ROWS, "prompt_tokens": SOURCE_TOKENS}
    workload |= {"steps": STEPS, "threads_of_a_rank": 1}
    record.write(arguments.results, f"tensor_parallel-{arguments.model}", title, workload, figures)


if __name__ == "__main__":
    main()
