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
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "int8"], default="bfloat16", help="of batchloom")
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
        single_pass = SinglePass(load_model(folder, dtype=arguments.dtype, device=device))
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

    single_pass.classify(middle_of(pairs)[:8])  # warm up
    ratios, processor_ratios = [], []
    speeds: dict[str, list[float]] = {"batchloom": [], "transformers": []}
    for _ in range(arguments.rounds):
        theirs = timed(partial(reference_logits, reference, pairs, best, device), device)
        ours = timed(partial(single_pass.classify, pairs), device)
        speeds["batchloom"].append(num_tokens / ours.wall_seconds)
        speeds["transformers"].append(num_tokens / theirs.wall_seconds)
        ratios.append(theirs.wall_seconds / ours.wall_seconds)
        processor_ratios.append(theirs.processor_seconds / ours.processor_seconds)
        print(
            f"transformers ({best}) {num_tokens / theirs.wall_seconds:7.0f} tokens/s, "
            f"single pass {num_tokens / ours.wall_seconds:7.0f} tokens/s: {ratios[-1]:.2f} times by the clock, "
            f"{processor_ratios[-1]:.2f} by processor time",
            flush=True,
        )
    by_clock, by_processor = statistics.median(ratios), statistics.median(processor_ratios)
    agree = (ours.result.argmax(-1) == theirs.result.argmax(-1)).float().mean()
    print(f"median: {by_clock:.2f} times by the clock, {by_processor:.2f} times by processor time")
    difference = (ours.result - theirs.result).abs().max()
    print(f"logits differ by {difference:.3f} at most; best class equal in {agree:.1%}")
    about = {"batchloom": {"dtype": arguments.dtype}, "transformers": {"dtype": "bfloat16", "settings": str(best)}}
    figures = [record.speed(system, own, "tokens/s", **about[system]) for system, own in speeds.items()]
    figures += [
        record.Figure(system="batchloom", what="ratio of processor time", value=by_processor, unit="times"),
        record.Figure(system="batchloom", what="largest difference of a logit", value=float(difference), unit=""),
        record.Figure(system="batchloom", what="best class as transformers", value=float(agree), unit="share"),
    ]
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
