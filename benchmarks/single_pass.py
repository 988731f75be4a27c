"""Zero-shot classification as entailment pairs: single passes beside transformers, in turns, in one process.

bart-base sizes with random weights in bfloat16; texts of log-normal length (mean 200 tokens) times labels, each pair a
sequence that ends in the end token. The rival sorts by length and tries several batch sizes, on all threads and with a
worker for each as our own single passes have; its best counts.

    python -m benchmarks.single_pass [--texts 64] [--labels 8] [--rounds 3] [--threads 2] [--device cpu]

On a CPU that others use too, wall time says little: --threads 1 and processor time are then the measure.
"""

import argparse
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from torch import Tensor

from batchloom.models import load_model
from batchloom.models.single_pass.single_pass import SinglePass
from batchloom.models.threads import side_by_side
from benchmarks import record

BATCH_SIZES = (2, 4, 8, 16, 32, 64)
SIZES = {
    "vocab_size": 50265,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}


def make_pairs(num_texts: int, num_labels: int) -> list[list[int]]:
    """Every text with every label's hypothesis: <s> text </s> hypothesis </s>."""
    chance = random.Random(0)
    spread = 0.6
    middle = math.log(200) - spread**2 / 2
    hypotheses = [[chance.randrange(4, 50000) for _ in range(chance.randint(5, 9))] for _ in range(num_labels)]
    pairs = []
    for _ in range(num_texts):
        length = min(900, max(4, round(chance.lognormvariate(middle, spread))))
        text = [chance.randrange(4, 50000) for _ in range(length)]
        pairs += [[0, *text, 2, 2, *hypothesis, 2] for hypothesis in hypotheses]
    return pairs


@dataclass(frozen=True)
class Setting:
    """How transformers runs: sequences of a batch, and batches at a time."""

    batch_size: int
    num_workers: int

    def __str__(self) -> str:
        return f"{self.num_workers} workers, batches of {self.batch_size}"


def reference_logits(model: torch.nn.Module, pairs: list[list[int]], setting: Setting, device: str) -> Tensor:
    """transformers over length-sorted, padded batches; logits in the order of the pairs."""
    order = sorted(range(len(pairs)), key=lambda row: -len(pairs[row]))
    logits = [torch.empty(0)] * len(pairs)
    batches = iter([order[first : first + setting.batch_size] for first in range(0, len(order), setting.batch_size)])

    @torch.inference_mode()
    def work() -> None:
        for rows in batches:
            longest = max(len(pairs[row]) for row in rows)
            ids = torch.tensor([pairs[row] + [1] * (longest - len(pairs[row])) for row in rows], device=device)
            found = model(input_ids=ids, attention_mask=(ids != 1).long(), use_cache=False).logits.float().cpu()
            for row, logit in zip(rows, found, strict=True):
                logits[row] = logit

    side_by_side(work, setting.num_workers, torch.get_num_threads())
    return torch.stack(logits)


@dataclass(frozen=True)
class Measured:
    result: Tensor
    wall_seconds: float
    processor_seconds: float  # of all threads of this process


def timed(function: Callable[[], Tensor], device: str) -> Measured:
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize()
    return Measured(result, time.perf_counter() - wall, time.process_time() - processor)


def middle_of(pairs: list[list[int]]) -> list[list[int]]:
    """The half of the pairs whose lengths are neither short nor long."""
    return sorted(pairs, key=len)[len(pairs) // 4 : 3 * len(pairs) // 4]


def compared(dtype: str, ours: list[Measured], theirs: list[Measured], num_tokens: int) -> Iterator[record.Figure]:
    """Print and yield what single passes in one dtype are beside the rival's rounds."""
    by_clock, by_processor = (
        statistics.median(getattr(their, name) / getattr(our, name) for our, their in zip(ours, theirs, strict=True))
        for name in ("wall_seconds", "processor_seconds")
    )
    found, expected = ours[-1].result, theirs[-1].result
    agree = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
    difference = float((found - expected).abs().max())
    speed = record.speed("batchloom", [num_tokens / one.wall_seconds for one in ours], "tokens/s", dtype=dtype)
    print(f"single pass in {dtype}: {', '.join(f'{one:.0f}' for one in speed.rounds)} tokens/s")
    print(f"  median: {by_clock:.2f} times by the clock, {by_processor:.2f} times by processor time")
    print(f"  logits differ by {difference:.3f} at most; best class equal in {agree:.1%}", flush=True)
    yield speed
    for what, value, unit in (
        ("ratio of processor time", by_processor, "times"),
        ("largest difference of a logit", difference, ""),
        ("best class as transformers", agree, "share"),
    ):
        yield record.Figure(system="batchloom", what=what, value=value, unit=unit, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtypes", nargs="+", choices=record.DTYPES, default=["bfloat16"], help="of batchloom, all in turns"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    record.add_options(parser)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    pairs = make_pairs(arguments.texts, arguments.labels)
    num_tokens = sum(map(len, pairs))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, device {device}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    print(f"{len(pairs)} pairs, {num_tokens} tokens, lengths {min(map(len, pairs))} to {max(map(len, pairs))}")

    torch.manual_seed(0)
    reference = transformers.BartForSequenceClassification(transformers.BartConfig(**SIZES)).to(torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        passes = {dtype: SinglePass(load_model(folder, dtype=dtype, device=device)) for dtype in arguments.dtypes}
    reference.to(device)

    seconds = {}
    workers = {1, torch.get_num_threads() if device == "cpu" else 1}
    for setting in (Setting(size, num_workers) for num_workers in sorted(workers) for size in BATCH_SIZES):
        sample = middle_of(pairs)[: max(32, setting.batch_size * setting.num_workers)]
        reference_logits(reference, sample[: setting.batch_size], setting, device)  # warm up
        measured = timed(partial(reference_logits, reference, sample, setting, device), device)
        seconds[setting] = measured.wall_seconds / len(sample)
        rate = sum(map(len, sample)) / measured.wall_seconds
        print(f"transformers, {setting}: {rate:7.0f} tokens/s", flush=True)
    best = min(seconds, key=lambda setting: seconds[setting])

    for single_pass in passes.values():
        single_pass.classify(middle_of(pairs)[:8])  # warm up
    theirs: list[Measured] = []
    ours: dict[str, list[Measured]] = {dtype: [] for dtype in passes}
    for _ in range(arguments.rounds):
        theirs.append(timed(partial(reference_logits, reference, pairs, best, device), device))
        for dtype, single_pass in passes.items():
            ours[dtype].append(timed(partial(single_pass.classify, pairs), device))
    speeds = [num_tokens / one.wall_seconds for one in theirs]
    print(f"transformers ({best}): {', '.join(f'{speed:.0f}' for speed in speeds)} tokens/s")
    figures = [record.speed("transformers", speeds, "tokens/s", dtype="bfloat16", settings=str(best))]
    for dtype, own in ours.items():
        figures += compared(dtype, own, theirs, num_tokens)
    title = f"bart-base, classification of {len(pairs):,} pairs of {num_tokens / len(pairs):.0f} tokens"
    workload = {
        "model": "bart-base's sizes, random weights",
        "pairs": len(pairs),
        "prompt_tokens": {"all": num_tokens, "least": min(map(len, pairs)), "most": max(map(len, pairs))},
        "threads": arguments.threads,
    }
    record.write(arguments.results, record.named("single_pass", device), title, workload, figures, device)


if __name__ == "__main__":
    main()
