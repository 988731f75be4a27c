"""What the pipeline adds to the engine, and what plain Ray Data with transformers takes for the same.

    python -m benchmarks.pipeline                          20,000 short rows, a model of one layer
    python -m benchmarks.pipeline --case demo              1,200 docstrings, the demo's summarizer
    python -m benchmarks.pipeline --systems job engine --rows-per-unit 20        what 1,000 units cost

Three ways to the same summaries, each in a process of its own, in turns:

    job      batchloom.run over Parquet files, to Parquet files
    engine   the model's engine alone: one process, texts tokenized beforehand, no files, no Ray
    plain    ray.data.read_parquet(...).map_batches(transformers).write_parquet(...): one actor, which pads batches of
             rows as they come and sorts nothing, as one writes it down

All compute greedily in float32 on as many threads as the machine has cores. `start to end` has imports, Ray's start and
loading in it; `work` is a job's time after its replicas are ready and the engine's time in `generate`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.config import InputConfig

ROOT = Path(__file__).resolve().parents[1]
SUMMARIZER = ROOT / "examples/demo_models/docs-bart-mini"
SYSTEMS = ("job", "engine", "plain")
PLAIN_BATCHES = (32, 128)  # rows; both are run, the faster one counts
SHARDS = 8


def make_short(folder: Path, num_rows: int) -> None:
    """Rows of one to twenty words of docstrings, and a BART of one layer each side."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    words = " ".join(text for text in _docstrings(3000)).split()
    texts = [" ".join(words[7 * row : 7 * row + 1 + row * 13 % 20]) for row in range(num_rows)]
    assert len(words) > 7 * num_rows, f"{len(words)} words are too few"
    _write(folder, texts)
    torch.manual_seed(0)
    sizes = {"d_model": 64, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    # with BART's init_std of 0.02 a model this narrow says the same token whatever it reads
    config = BartConfig.from_pretrained(SUMMARIZER, **sizes, **layers, init_std=64**-0.5)
    BartForConditionalGeneration(config).save_pretrained(folder / "model")
    GenerationConfig.from_pretrained(SUMMARIZER, num_beams=1, max_length=17, min_length=0).save_pretrained(
        folder / "model"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SUMMARIZER / name, folder / "model")


def make_demo(folder: Path, num_rows: int) -> None:
    """Docstrings of installed packages, and the demo's summarizer as it is."""
    _write(folder, _docstrings(num_rows))
    shutil.copytree(SUMMARIZER, folder / "model")


def _docstrings(num_rows: int) -> list[str]:
    sys.path.insert(0, str(ROOT / "examples"))
    from docstrings import corpus

    tables = [pq.read_table(pa.BufferReader(shard)) for shard in corpus(num_rows)]
    texts: list[str] = pa.concat_tables(tables)["text"].to_pylist()
    return texts


def _write(folder: Path, texts: list[str]) -> None:
    (folder / "in").mkdir()
    table = pa.table({"id": range(len(texts)), "text": texts})
    size = -(-len(texts) // SHARDS)
    for number in range(SHARDS):
        pq.write_table(table.slice(number * size, size), folder / f"in/{number}.parquet", row_group_size=1000)


CASES = {"short": (make_short, 20_000), "demo": (make_demo, 1_200)}


# ------------------------------------------------------------------------------------------------- the three systems


def job(folder: Path, rows_per_unit: int) -> dict[str, float]:
    import batchloom

    manifest = batchloom.run(
        {
            "task": "summarization",
            "model": str(folder / "model"),
            "input": {"paths": [str(folder / "in")], "keep_columns": ["id"], "rows_per_unit": rows_per_unit},
            "output": {"path": str(folder / "out")},
            "engine": {"dtype": "float32", "compute_once": False},
            "task_options": {"long_documents": "truncate"},
        }
    )
    timing = manifest.timing
    assert manifest.totals["errors"] == 0, manifest.totals
    return {
        "rows": manifest.totals["rows"],
        "tokens": manifest.totals["output_tokens"],
        "work": timing["wall_seconds"] - timing["startup_seconds"],
        "busy": timing["engine_busy_seconds"],
        "units": timing["units_computed"],
    }


def engine(folder: Path, _: int) -> dict[str, float]:
    from batchloom.models import Engine, GenerationParams, load_model, load_tokenizer

    model, tokenizer = load_model(str(folder / "model")), load_tokenizer(str(folder / "model"))
    texts = pq.read_table(folder / "in")["text"].to_pylist()
    positions = model.config.max_positions
    every = tokenizer.encode_batch(texts)
    prompts = [ids if len(ids) <= positions else [*ids[: positions - 1], ids[-1]] for ids in every]
    params = GenerationParams()  # the checkpoint's own
    begin = time.perf_counter()
    answers = Engine(model).generate(prompts, params)
    return {
        "rows": len(answers),
        "tokens": sum(len(answer.outputs[0].token_ids) for answer in answers),
        "work": time.perf_counter() - begin,
    }


class Plain:
    """The actor of the plain way."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        texts = list(batch["text"])
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.model.config.max_position_embeddings,
            return_tensors="pt", return_token_type_ids=False,
        )  # fmt: skip
        with torch.inference_mode():
            ids = self.model.generate(**inputs)
        return {"id": batch["id"], "summary_text": self.tokenizer.batch_decode(ids, skip_special_tokens=True)}


def plain(folder: Path, batch_size: int) -> dict[str, float]:
    import os

    import ray

    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores + 2, logging_level="warning")  # room for reading and writing beside the actor
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(str(folder / "in")).map_batches(
        Plain, fn_constructor_args=(str(folder / "model"),), batch_size=batch_size, concurrency=1, num_cpus=cores
    )
    data.write_parquet(str(folder / f"plain-{batch_size}"))
    rows = pq.read_table(folder / f"plain-{batch_size}").num_rows
    return {"rows": rows}


# ----------------------------------------------------------------------------------------------------- the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="short")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows-per-unit", type=int, default=InputConfig.rows_per_unit)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(globals()[asked.do](asked.folder, asked.size)))
        return
    make, num_rows = CASES[asked.case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.rows or num_rows)
        sizes = {"job": (asked.rows_per_unit,), "engine": (0,), "plain": PLAIN_BATCHES}
        ways = [(system, size) for system in asked.systems for size in sizes[system]]
        took: dict[tuple[str, int], list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(asked.rounds):
            for way in ways:
                took[way].append(told := timed(folder, *way))
                figures = ", ".join(f"{key} {value:.1f}" for key, value in told.items())
                print(f"round {number}: {way[0]} {way[1] or ''}: {figures}", flush=True)
    compare(took)


def timed(folder: Path, system: str, size: int) -> dict[str, float]:
    """Run one system in a process of its own, from its start to its end."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(folder / f"plain-{size}", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.pipeline", "--do", system, "--folder", str(folder)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--size", str(size)], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"start to end": seconds, **told}


def compare(took: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Print the medians of what was measured in the same rounds."""
    median = {
        way: {key: statistics.median(told[key] for told in rounds) for key in rounds[0]} for way, rounds in took.items()
    }
    ours = next((told for way, told in median.items() if way[0] == "job"), None)
    alone = median.get(("engine", 0))
    rivals = [told["start to end"] for way, told in median.items() if way[0] == "plain"]
    if ours and alone:
        print(f"job's work over the engine alone: {ours['work'] / alone['work']:.2f}")
        more = ours["work"] - alone["work"]
        print(
            f"  more of it: {more:.1f} s, {more / ours['units'] * 1e3:.0f} ms a unit; engine busy {ours['busy']:.1f} s"
        )
    if ours and rivals:
        print(f"plain Ray Data over the job, start to end: {min(rivals) / ours['start to end']:.2f}")


if __name__ == "__main__":
    main()
