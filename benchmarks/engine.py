"""The engine against transformers and CTranslate2, pairwise in one run: random weights at real sizes, equal token ids.

    python -m benchmarks.engine --workload beam --documents 64 --threads 2

Every system gets the same prompts. transformers runs in bfloat16 with prompts sorted by length, in static batches;
CTranslate2 (left out where it is not installed: pip install ctranslate2) in int8, batches by tokens, with one worker on
all threads or a worker a thread. Each rival's settings are tried first, and its best go on. Rounds alternate between
the systems, and the best of each is taken. Two speeds are given: rows a second by the clock, and rows a second of
processor time, which a busy machine disturbs less. The floor is what products alone would take, all threads at the
speed that this machine reaches for large ones.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import record


@dataclass(frozen=True)
class Workload:
    """One kind of work; lengths are log-normal with this mean and a deviation of half an e-fold."""

    checkpoint: str
    mean_prompt: int
    num_new: int
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    varying: bool = False  # new tokens from 8 to 128, geometric, in place of num_new

    def title(self, prompts: list[list[int]]) -> str:
        search = f"beam {self.num_beams}" if self.num_beams > 1 else "greedy"
        mean = sum(map(len, prompts)) / len(prompts)
        new = "8 to 128" if self.varying else self.num_new
        return f"{self.checkpoint}, {search}, {len(prompts):,} documents of {mean:.0f} tokens, {new} new"


WORKLOADS = {
    "beam": Workload("bart-base", 215, 64, num_beams=4, no_repeat_ngram_size=3),
    "greedy": Workload("bart-base", 301, 64),
    "greedy-varying": Workload("bart-base", 301, 64, varying=True),
    "bloom": Workload("bloom-560m", 120, 48),
}
# What is tried: sequences of a static batch, and for CTranslate2 workers (0: one a thread) and tokens of a batch.
STATIC_BATCHES = (4, 8, 16, 32)
TRANSLATORS = ((1, 8192), (1, 2048), (0, 4096), (0, 2048), (0, 1024))
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="beam")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument(
        "--dtypes", nargs="+", choices=record.DTYPES, default=["bfloat16"], help="of batchloom, all in turns"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=["batchloom", "transformers", "ctranslate2"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "batchloom-benchmark")
    record.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = WORKLOADS[options.workload]
    folder = checkpoint(work.checkpoint, options.folder)
    prompts, lengths = corpus(work, options.documents)
    makers: dict[str, Callable[[], dict[str, Run]]] = {
        "transformers": lambda: transformers_static(folder, work, prompts, lengths),
        "ctranslate2": lambda: ctranslate2(folder, work, prompts, lengths, options.threads),
    }
    runs: dict[str, Run] = {}
    for system in options.systems:
        if system == "batchloom":
            runs |= {f"{system}, {dtype}": batchloom(folder, work, prompts, lengths, dtype) for dtype in options.dtypes}
            continue
        try:
            runs |= fastest(makers[system](), options.threads)
        except ImportError as error:
            print(f"{system}: left out, {error}", file=sys.stderr)
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            timed[name].append(clocked(run, options.threads))
    print(f"{work.title(prompts)} ({sum(lengths)}), {options.threads} threads, torch {torch.__version__}")
    of_rivals = {"transformers": "bfloat16", "ctranslate2": "int8"}
    figures = []
    for name, times in timed.items():
        wall, cpu = (min(one) for one in zip(*times, strict=True))
        print(f"{name:40s} {len(prompts) / wall:7.2f} rows/s  {len(prompts) / cpu:7.2f} rows per processor second")
        system, _, settings = name.partition(", ")
        told = {"dtype": settings} if system == "batchloom" else {"dtype": of_rivals[system], "settings": settings}
        own = {"system": system, **told}
        rounds = tuple(len(prompts) / one for one, _ in times)
        figures.append(record.Figure(value=len(prompts) / wall, unit="rows/s", rounds=rounds, **own))
        per_second = record.Figure(what="speed of a core", value=len(prompts) / cpu, unit="rows/processor s", **own)
        figures.append(per_second)
    floor = floor_seconds(work, prompts, lengths, options.threads)
    print(f"{'floor':40s} {len(prompts) / floor:7.2f} rows/s, products alone at this machine's best speed")
    figures.append(record.Figure(system="floor", value=len(prompts) / floor, unit="rows/s", dtype="bfloat16"))
    workload = {**asdict(work), "new_tokens": sum(lengths), "threads": options.threads, "weights": "random"}
    workload["prompt_tokens"] = {"mean": sum(map(len, prompts)) / len(prompts), **least_and_most(prompts)}
    record.write(options.results, f"engine-{options.workload}", work.title(prompts), workload, figures)


def least_and_most(prompts: list[list[int]]) -> dict[str, int]:
    return {"least": min(map(len, prompts)), "most": max(map(len, prompts))}


def fastest(runs: dict[str, Run], num_threads: int) -> dict[str, Run]:
    """The settings that take least time by the clock, each tried once; a first run, which warms up, does not count."""
    if len(runs) == 1:
        return runs
    next(iter(runs.values()))()
    seconds = {}
    for name, run in runs.items():
        seconds[name], _ = clocked(run, num_threads)
        print(f"tried: {name:33s} {seconds[name]:6.1f} s", flush=True)
    best = min(seconds, key=lambda name: seconds[name])
    return {best: runs[best]}


def clocked(run: Run, num_threads: int) -> tuple[float, float]:
    torch.set_num_threads(num_threads)  # CTranslate2 sets the number of this thread to that of its workers
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def corpus(work: Workload, num_documents: int) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many new tokens each must get."""
    generator = torch.Generator().manual_seed(0)
    sigma = 0.5
    length_B = (
        torch.randn(num_documents, generator=generator) * sigma + math.log(work.mean_prompt) - sigma**2 / 2
    ).exp()
    prompts = [
        torch.randint(5, 40_000, (int(length),), generator=generator).tolist() for length in length_B.clamp(16, 1000)
    ]
    if not work.varying:
        return prompts, [work.num_new] * num_documents
    uniform_B = torch.rand(num_documents, generator=generator)
    return prompts, (8 + (uniform_B.log() / math.log(1 - 1 / 32)).int()).clamp(8, 128).tolist()


def checkpoint(name: str, root: Path) -> Path:
    """A checkpoint of real size with random weights and a vocabulary without words, made once."""
    import transformers
    from tokenizers import Tokenizer, models

    folder = root / name
    if (folder / "tokenizer.json").exists():
        return folder
    torch.manual_seed(0)
    if name == "bart-base":
        config: Any = transformers.BartConfig(
            d_model=768,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=12,
            decoder_attention_heads=12,
            encoder_ffn_dim=3072,
            decoder_ffn_dim=3072,
            forced_eos_token_id=None,
            normalize_before=False,  # and below: spellings of old files, which CTranslate2's converter asks for
            normalize_embedding=True,
            static_position_embeddings=False,
        )
        model: Any = transformers.BartForConditionalGeneration(config)
    else:
        config = transformers.BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16, pad_token_id=3)
        model = transformers.BloomForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {f"t{token}": token for token in range(4, config.vocab_size)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    tokenizer.save_pretrained(folder)
    return folder


def batchloom(
    folder: Path, work: Workload, prompts: list[list[int]], lengths: list[int], dtype: str = "bfloat16"
) -> Run:
    from batchloom.models import Engine, GenerationParams, load_model

    model = load_model(str(folder), dtype=dtype, device="cpu")
    params = [
        GenerationParams(
            max_new_tokens=length,
            min_new_tokens=length,
            num_beams=work.num_beams,
            no_repeat_ngram_size=work.no_repeat_ngram_size,
        )
        for length in lengths
    ]

    def run() -> None:
        answers = Engine(model).generate(prompts, params)
        assert [len(answer.outputs[0].token_ids) for answer in answers] == lengths

    return run


def transformers_static(
    folder: Path,
    work: Workload,
    prompts: list[list[int]],
    lengths: list[int],
    sizes: tuple[int, ...] = STATIC_BATCHES,
) -> dict[str, Run]:
    import transformers

    is_bloom = "bloom" in work.checkpoint
    kind = transformers.AutoModelForCausalLM if is_bloom else transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))

    def run(batch_size: int) -> None:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            width = max(len(prompts[row]) for row in rows)
            ids, mask = torch.full((len(rows), width), 1), torch.zeros(len(rows), width, dtype=torch.long)
            for place, row in enumerate(rows):
                where = slice(width - len(prompts[row]), width) if is_bloom else slice(0, len(prompts[row]))
                ids[place, where], mask[place, where] = torch.tensor(prompts[row]), 1
            longest = max(lengths[row] for row in rows)
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    num_beams=work.num_beams,
                    no_repeat_ngram_size=work.no_repeat_ngram_size,
                    do_sample=False,
                )

    return {f"transformers, {size} sequences": partial(run, size) for size in sizes}


def ctranslate2(
    folder: Path, work: Workload, prompts: list[list[int]], lengths: list[int], num_threads: int
) -> dict[str, Run]:
    import ctranslate2 as library

    converted = folder / "ctranslate2"
    if not converted.exists():
        library.converters.TransformersConverter(str(folder)).convert(str(converted), quantization="int8")
    words = [[f"t{token}" for token in prompt] for prompt in prompts]
    longest = max(lengths)

    def runs_of(workers: int) -> Callable[[int], object]:
        threads = {"inter_threads": workers, "intra_threads": num_threads // workers}
        if "bloom" in work.checkpoint:
            generator = library.Generator(str(converted), compute_type="int8", **threads)
            return lambda batch_tokens: generator.generate_batch(
                words,
                max_length=longest,
                min_length=longest,
                include_prompt_in_result=False,
                max_batch_size=batch_tokens,
                batch_type="tokens",
                beam_size=work.num_beams,
            )
        translator = library.Translator(str(converted), compute_type="int8", **threads)
        options = {
            "max_decoding_length": longest,
            "min_decoding_length": longest,
            "max_input_length": 0,
            "no_repeat_ngram_size": work.no_repeat_ngram_size,
            "beam_size": work.num_beams,
        }
        if not work.varying:
            return lambda batch_tokens: translator.translate_batch(
                words, max_batch_size=batch_tokens, batch_type="tokens", **options
            )

        def each_to_its_end(batch_tokens: int) -> None:
            """As if end tokens came: a callback ends each sequence, and the library drops it from its batch."""
            coming = []
            for rows in token_batches(prompts, batch_tokens):
                ends = [lengths[row] - 1 for row in rows]
                coming += translator.translate_batch(
                    [words[row] for row in rows],
                    callback=partial(is_end, ends),
                    asynchronous=True,
                    **options,
                )
            made = sum(len(one.result().hypotheses[0]) for one in coming)
            assert made == sum(lengths), f"{made} tokens where {sum(lengths)} were asked for"

        return each_to_its_end

    settings = {(workers or num_threads, batch_tokens) for workers, batch_tokens in TRANSLATORS}
    by_workers = {workers: runs_of(workers) for workers, _ in settings}
    return {
        f"ctranslate2, {workers} workers, {batch_tokens} tokens": partial(by_workers[workers], batch_tokens)
        for workers, batch_tokens in sorted(settings)
    }


def is_end(ends: list[int], made: Any) -> bool:
    """Whether a sequence of a batch is complete with the token that CTranslate2 just made."""
    return bool(made.step == ends[made.batch_id])


def token_batches(prompts: list[list[int]], batch_tokens: int) -> list[list[int]]:
    """Rows of like length, the longest first, as many as fit with their padding."""
    batches: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        if batches and (len(batches[-1]) + 1) * len(prompts[batches[-1][0]]) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def floor_seconds(work: Workload, prompts: list[list[int]], lengths: list[int], num_threads: int) -> float:
    """Operations of all products, without attention, at the speed of a large product on this machine."""
    left, right = torch.randn(2048, 1024, dtype=torch.bfloat16), torch.randn(1024, 4096, dtype=torch.bfloat16)
    speed = max(2 * 2048 * 1024 * 4096 / clocked(lambda: torch.mm(left, right), num_threads)[0] for _ in range(8))
    num_prompt, num_steps = sum(map(len, prompts)), sum(lengths) * work.num_beams
    if "bloom" in work.checkpoint:
        layers, head = 24 * 12 * 1024**2, 250_880 * 1024
        return 2 * (layers * (num_prompt + num_steps) + head * num_steps) / speed
    encoder, decoder, head = 6 * 12 * 768**2, 6 * 14 * 768**2, 50_265 * 768
    cross = 6 * 2 * 768**2
    return 2 * ((encoder + cross) * num_prompt + (decoder + head) * num_steps) / speed


if __name__ == "__main__":
    main()
