"""Decoding on a GPU: tokens a second against transformers, and a step's time over the time that its bytes take.

    python -m benchmarks.gpu                                          all cases, some minutes of an H100
    python -m benchmarks.gpu --cases bloom-560m --profile             where a step's time goes
    python -m benchmarks.gpu --cases tiny-bart tiny-bloom --device cpu --documents 8       whether it runs at all

Random weights at real sizes in bfloat16, made on the device, log-normal lengths of prompts, every answer as long as
asked. First the answers of captured steps are held against those of plain attention, in float32 on tiny models. The
bytes of a step are the decoder's weights and output head, each prompt's keys and values once, and each sequence's own,
at the speed of a copy of 1 GiB; its time is taken from steps that start no prompts, Python and search included.
transformers (left out where it is not installed) gets batches sorted by length, of two sizes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from batchloom.models import Engine, GenerationParams
from batchloom.models.device import bytes_per_token
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from benchmarks import record
from benchmarks.engine import Workload, corpus, least_and_most
from benchmarks.random_model import BLOOM, SIZES, random_model, raw_config

CASES = {
    "bart-large-beam": (Workload("bart-large", 215, 64, num_beams=4, no_repeat_ngram_size=3), 256),
    "bart-large": (Workload("bart-large", 301, 64), 1024),
    "bart-large-varying": (Workload("bart-large", 301, 64, varying=True), 1024),
    "bloom-560m": (Workload("bloom-560m", 120, 48), 1024),
    "bloom-7b1": (Workload("bloom-7b1", 120, 48), 512),
    "tiny-bart": (Workload("tiny-bart", 60, 24, num_beams=4), 32),
    "tiny-bloom": (Workload("tiny-bloom", 60, 24), 32),
}
STATIC_BATCHES = (64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[name for name in CASES if "tiny" not in name])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda", 0))
    parser.add_argument("--documents", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--systems", nargs="+", default=["batchloom", "transformers"])
    record.add_options(parser)
    options = parser.parse_args()
    is_gpu = options.device.type == "cuda"
    print(torch.cuda.get_device_name(options.device) if is_gpu else "CPU", f"torch {torch.__version__}", flush=True)
    check(options.device)
    runner.backend_of = PagedBackend  # also where the device is a CPU, to see that all of this runs
    speed = bytes_a_second(options.device)
    for name in options.cases:
        work, num_documents = CASES[name]
        prompts, lengths = corpus(work, options.documents or num_documents)
        if "tiny" in name:
            prompts = [[token % 200 + 5 for token in prompt[:400]] for prompt in prompts]
        num_tokens = sum(map(len, prompts))
        print(f"\n{name}: {len(prompts)} documents, {num_tokens} tokens in, {sum(lengths)} out", flush=True)
        figures = []
        if "batchloom" in options.systems:
            figures += batchloom(work, prompts, lengths, options, speed)
        if "transformers" in options.systems:
            figures += transformers_static(work, prompts, lengths, options.device)
        told = {**asdict(work), "documents": len(prompts), "new_tokens": sum(lengths), "weights": "random"}
        told["prompt_tokens"] = {"mean": num_tokens / len(prompts), **least_and_most(prompts)}
        record.write(options.results, f"gpu-{name}", work.title(prompts), told, figures, str(options.device))


def check(device: torch.device) -> None:
    """Whether steps in blocks, captured on a GPU, give the tokens of plain attention."""
    for name in ("tiny-bart", "tiny-bloom"):
        model = random_model(name, device, torch.float32, deviation=0.4)
        prompts = [[(7 * row + 3 * place) % 200 + 5 for place in range(9 * row + 1)] for row in range(12)]
        for params in (
            GenerationParams(max_new_tokens=40, min_new_tokens=40),
            GenerationParams(max_new_tokens=40, min_new_tokens=30, num_beams=4, num_return_sequences=4),
            GenerationParams(max_new_tokens=20, do_sample=True, num_return_sequences=3),
        ):
            said = []
            for backend in (PagedBackend, PooledBackend):
                runner.backend_of = backend
                engine = Engine(model)
                answers = engine.generate(prompts * 3, params)
                said.append([[one.token_ids for one in answer.outputs] for answer in answers])
                if backend is PagedBackend:
                    steps = dict(engine._lanes.runners[0]._backend._graphs.num_steps)
            num_equal = sum(one == two for one, two in zip(*said, strict=True))
            search = "samples" if params.do_sample else f"{params.num_beams or 1} beams"
            print(f"check {name}, {search}: {num_equal} of {len(said[0])} equal; steps {steps}", flush=True)


def batchloom(
    work: Workload, prompts: list[list[int]], lengths: list[int], options: argparse.Namespace, speed: float
) -> list[record.Figure]:
    model = random_model(work.checkpoint, options.device, torch.bfloat16)
    shared = {"num_beams": work.num_beams, "no_repeat_ngram_size": work.no_repeat_ngram_size}
    params = [GenerationParams(max_new_tokens=length, min_new_tokens=length, **shared) for length in lengths]
    engine = Engine(model)
    speeds = []
    for number in range(options.rounds):  # the first one captures
        for row, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            engine.add(row, prompt, own)
        steps, starts, begin = [], [], time.perf_counter()
        if options.profile and number == 1:
            profile(engine, num_steps=1)
        while engine.num_unfinished:
            num_rows, num_bytes = step_bytes(engine)
            before, started = time.perf_counter(), engine.stats.num_prompt_tokens
            engine.step()
            took = time.perf_counter() - before
            if started == engine.stats.num_prompt_tokens:
                steps.append((num_rows, took, num_bytes / speed))
            else:
                starts.append((engine.stats.num_prompt_tokens - started, took))
            if options.profile and number == 1 and len(steps) == 8:
                profile(engine, num_steps=5)
        seconds = time.perf_counter() - begin
        speeds.append(sum(lengths) / seconds)
        kinds = dict(engine._lanes.runners[0]._backend._graphs.num_steps)
        print(f"  batchloom, round {number}: {sum(lengths) / seconds:9.0f} tokens/s in {seconds:.2f} s; steps {kinds}")
        num_started, took = sum(number for number, _ in starts), sum(seconds for _, seconds in starts)
        print(f"  {len(starts)} steps that start prompts: {num_started} tokens in {took:.2f} s; {len(steps)} others")
    own = {"system": "batchloom", "dtype": "bfloat16"}
    later = speeds[1:] or speeds
    figures = [record.Figure(value=max(later), unit="tokens/s", rounds=tuple(later), **own)]
    most = max(num_rows for num_rows, _, _ in steps)
    for name, part in (("most rows", [step for step in steps if step[0] == most]), ("all steps", steps)):
        times, floors = (statistics.median(step[place] for step in part) * 1e3 for place in (1, 2))
        print(f"  step, {name} ({part[0][0]}): {times:.3f} ms, its bytes {floors:.3f} ms: {times / floors:.2f} times")
        figures.append(record.Figure(what=f"a step, {name}", value=times, unit="ms", **own))
        figures.append(record.Figure(what=f"a step's bytes, {name}", value=floors, unit="ms", **own))
    if options.device.type == "cuda":
        print(f"  memory at most {torch.cuda.max_memory_allocated(options.device) / 1e9:.1f} GB")
    return figures


def step_bytes(engine: Engine) -> tuple[int, float]:
    """Rows that run, and the bytes that their step must read."""
    model, histories = engine.model, [one.cohort.history for one in engine._lanes.runners[0]._running.values()]
    prompts = {request for history in histories for request in history.requests}
    num_said = sum(
        length - request.num_start_tokens
        for history in histories
        for length, request in zip(history.lengths, history.requests, strict=True)
    )
    num_read = sum(len(request.prompt_ids) for request in prompts) + num_said
    elsewhere = ("encoder.layers", "embed_positions", "encoder_attn.k_proj", "encoder_attn.v_proj")
    weights = [one for name, one in model.named_parameters() if not any(part in name for part in elsewhere)]
    num_weights = sum(one.numel() for one in weights) * model.dtype.itemsize
    return sum(history.num_rows for history in histories), num_weights + num_read * bytes_per_token(model)


def profile(engine: Engine, num_steps: int) -> None:
    """Where the next steps spend their time, by kernel."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(num_steps):
            engine.step()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=60))


def transformers_static(
    work: Workload, prompts: list[list[int]], lengths: list[int], device: torch.device
) -> list[record.Figure]:
    """Return the faster batch size's speed."""
    try:
        import transformers
    except ImportError:
        print("  transformers is not installed here")
        return []
    is_bloom = SIZES[work.checkpoint][0] == BLOOM
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    raw = {key: value for key, value in raw_config(work.checkpoint).items() if key != "model_type"} | ids
    config: Any = transformers.BloomConfig(vocab_size=raw.pop("vocab_size", 250_880), **raw) if is_bloom else None
    config = config or transformers.BartConfig(forced_eos_token_id=None, **raw)
    kind = transformers.AutoModelForCausalLM if is_bloom else transformers.AutoModelForSeq2SeqLM
    with device:
        model = kind.from_config(config, dtype=torch.bfloat16).eval()
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    generate_batch(model, work, [prompts[0]], 4, is_bloom)
    speeds = {}
    for size in STATIC_BATCHES:
        begin = time.perf_counter()
        try:
            for first in range(0, len(order), size):
                rows = order[first : first + size]
                generate_batch(model, work, [prompts[row] for row in rows], max(lengths[row] for row in rows), is_bloom)
        except torch.OutOfMemoryError:
            print(f"  transformers, batches of {size}: out of memory")
            continue
        seconds = time.perf_counter() - begin
        speeds[size] = sum(lengths) / seconds
        print(f"  transformers, batches of {size}: {speeds[size]:9.0f} tokens/s in {seconds:.2f} s")
    if not speeds:
        return []
    best = max(speeds, key=lambda size: speeds[size])
    about = {"dtype": "bfloat16", "settings": f"batches of {best}"}
    return [record.Figure(system="transformers", value=speeds[best], unit="tokens/s", **about)]


def generate_batch(model: Any, work: Workload, prompts: list[list[int]], num_new: int, is_bloom: bool) -> None:
    width = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), width), 1), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if is_bloom else slice(0, len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    shared = {"num_beams": work.num_beams, "no_repeat_ngram_size": work.no_repeat_ngram_size, "do_sample": False}
    with torch.inference_mode():
        model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            **shared,
        ).cpu()


def bytes_a_second(device: torch.device) -> float:
    """How fast a large copy reads and writes."""
    source = torch.zeros(1 << 30 if device.type == "cuda" else 1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times = []
    for _ in range(6):
        wait()
        begin = time.perf_counter()
        target.copy_(source)
        wait()
        times.append(time.perf_counter() - begin)
    print(f"copies at {2 * len(source) / min(times) / 1e12:.2f} TB/s")
    return 2 * len(source) / min(times)


if __name__ == "__main__":
    main()
