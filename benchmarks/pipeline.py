"""What the pipeline adds to the engine, and what plain Ray Data with other engines takes for the same.

    python -m benchmarks.pipeline                          20,000 short rows, a model of one layer
    python -m benchmarks.pipeline --case demo              1,200 docstrings, the demo's summarizer
    python -m benchmarks.pipeline --systems job engine --rows-per-unit 20        what 1,000 units cost

Four ways to the same summaries, each in a process of its own, in turns:

    job            batchloom.run over Parquet files, to Parquet files, in each of --dtypes
    engine         the model's engine alone: one process, texts tokenized beforehand, no files, no Ray
    transformers   ray.data.read_parquet(...).map_batches(transformers).write_parquet(...), in float32 or bfloat16
    ctranslate2    the same with CTranslate2 in int8 (left out where it is not installed)

All use as many threads as the machine has cores. Rivals (benchmarks/plain_ray.py) try settings on a part of the rows,
and their best goes on. `start to end` has imports, Ray's start and loading in it; `work` is a job's time after its
replicas are ready and the engine's time in `generate`.
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

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.config import InputConfig
from benchmarks import plain_ray, record

ROOT = Path(__file__).resolve().parents[1]
SUMMARIZER = ROOT / "examples/demo_models/docs-bart-mini"
SYSTEMS = ("job", "engine", "transformers", "ctranslate2")
SHARDS = 8
Way = tuple[str, str]  # a system, and its setting
Told = dict[str, float]


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
TITLES = {
    "short": "greedy, rows of 1 to 20 words, 16 new at most, a model of one layer",
    "demo": "beam 4, docstrings, the demo's summarizer",
}


# ------------------------------------------------------------------------------------------------------- our systems


def job(folder: Path, dtype: str, out: Path, rows_per_unit: int) -> Told:
    import batchloom

    manifest = batchloom.run(
        {
            "task": "summarization",
            "model": str(folder / "model"),
            "input": {"paths": [str(folder / "in")], "keep_columns": ["id"], "rows_per_unit": rows_per_unit},
            "output": {"path": str(out)},
            "engine": {"dtype": dtype, "compute_once": False},
            "task_options": {"long_documents": "truncate"},
        }
    )
    timing = manifest.timing
    assert manifest.totals["errors"] == 0, manifest.totals
    return {
        "rows": manifest.totals["rows"],
        "tokens in": manifest.totals["input_tokens"],
        "tokens": manifest.totals["output_tokens"],
        "work": timing["wall_seconds"] - timing["startup_seconds"],
        "busy": timing["engine_busy_seconds"],
        "units": timing["units_computed"],
    }


def engine(folder: Path, dtype: str) -> Told:
    from batchloom.models import Engine, GenerationParams, load_model, load_tokenizer

    model, tokenizer = load_model(str(folder / "model"), dtype=dtype), load_tokenizer(str(folder / "model"))
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


# ----------------------------------------------------------------------------------------------------- the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="short")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows-per-unit", type=int, default=InputConfig.rows_per_unit)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of the jobs; the engine has the first")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    record.add_options(parser)
    parser.add_argument("--do", nargs=2, metavar=("SYSTEM", "SETTING"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(run(asked.folder, *asked.do, asked.rows_per_unit)))
        return
    make, num_rows = CASES[asked.case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.rows or num_rows)
        settings = {"job": asked.dtypes, "engine": asked.dtypes[:1]}
        for system in [name for name in asked.systems if name in plain_ray.RIVALS]:
            try:
                settings[system] = [plain_ray.fastest(system, folder)]
            except ImportError as error:
                print(f"{system}: left out, {error}", file=sys.stderr)
        ways = [(system, setting) for system in asked.systems for setting in settings.get(system, ())]
        took: dict[Way, list[Told]] = {way: [] for way in ways}
        for number in range(asked.rounds):
            for way in ways:
                took[way].append(told := timed(folder, *way, asked.rows_per_unit))
                figures = ", ".join(f"{key} {value:.1f}" for key, value in told.items())
                print(f"round {number}: {' '.join(way)}: {figures}", flush=True)
        texts = {way: summaries(answers_of(folder, *way)) for way in ways if way[0] != "engine"}
    compare(asked, took, texts)


def run(folder: Path, system: str, setting: str, rows_per_unit: int) -> Told:
    """Run one system in this process."""
    out = answers_of(folder, system, setting)
    if system == "job":
        return job(folder, setting, out, rows_per_unit)
    return engine(folder, setting) if system == "engine" else plain_ray.run(system, folder, setting, out)


def answers_of(folder: Path, system: str, setting: str) -> Path:
    return folder / f"{system}-{setting}"


def summaries(folder: Path) -> list[str]:
    """Return the answers in the order of their ids."""
    return pq.read_table(folder, columns=["id", "summary_text"]).sort_by("id")["summary_text"].to_pylist()


def timed(folder: Path, system: str, setting: str, rows_per_unit: int) -> Told:
    """Run one system in a process of its own, from its start to its end."""
    shutil.rmtree(answers_of(folder, system, setting), ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.pipeline", "--do", system, setting, "--folder", str(folder)]
    command += ["--rows-per-unit", str(rows_per_unit)]
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    told: Told = json.loads(done.stdout.strip().splitlines()[-1])
    return {"start to end": seconds, **told}


def compare(asked: argparse.Namespace, took: dict[Way, list[Told]], texts: dict[Way, list[str]]) -> None:
    """Print and write the medians of what was measured in the same rounds."""
    median = {
        way: {key: statistics.median(told[key] for told in rounds) for key in rounds[0]} for way, rounds in took.items()
    }
    figures = []
    for (system, setting), told in median.items():
        rows = told["rows"]
        if system == "engine":
            figures.append(
                record.Figure(system="engine alone", value=rows / told["work"], unit="rows/s", dtype=setting)
            )
            continue
        own = {
            "job": {"system": "batchloom", "dtype": setting},
            "transformers": {"system": "transformers", "dtype": setting.partition(", ")[0], "settings": setting},
            "ctranslate2": {"system": "ctranslate2", "dtype": "int8", "settings": setting},
        }[system]
        rounds = tuple(rows / one["start to end"] for one in took[system, setting])
        figures.append(record.Figure(value=rows / told["start to end"], unit="rows/s", rounds=rounds, **own))
        if system == "job":
            speed = rows / told["work"]
            figures.append(record.Figure(what="speed when replicas are ready", value=speed, unit="rows/s", **own))
    first = ("job", asked.dtypes[0])
    ours, alone = median.get(first), median.get(("engine", asked.dtypes[0]))
    if ours and alone:
        more = ours["work"] - alone["work"]
        print(f"job's work over the engine alone: {ours['work'] / alone['work']:.2f}")
        print(
            f"  more of it: {more:.1f} s, {more / ours['units'] * 1e3:.0f} ms a unit; engine busy {ours['busy']:.1f} s"
        )
    jobs = [told["start to end"] for (system, _), told in median.items() if system == "job"]
    for system in ("transformers", "ctranslate2"):
        rivals = [told["start to end"] for way, told in median.items() if way[0] == system]
        if jobs and rivals:
            print(f"plain Ray Data with {system} over the best job, start to end: {min(rivals) / min(jobs):.2f}")
    for way, answers in texts.items():
        if first in texts and way != first:
            same = sum(one == two for one, two in zip(answers, texts[first], strict=True)) / len(answers)
            print(f"rows with the {first[1]} job's answer, {' '.join(way)}: {same:.1%}")
            name, what = " ".join(way).replace("job", "batchloom"), f"rows with batchloom's {first[1]} answer"
            figures.append(record.Figure(system=name, what=what, value=same, unit="share"))
    told = next(iter(median.values()))
    title = f"Parquet to Parquet, {TITLES[asked.case]}, {told['rows']:,.0f} rows"
    workload = {
        "case": asked.case,
        "rows": told["rows"],
        "rows_per_unit": asked.rows_per_unit,
        "threads": record.num_cores(),
        **({"prompt_tokens": ours["tokens in"], "new_tokens": ours["tokens"]} if ours else {}),
    }
    record.write(asked.results, f"pipeline-{asked.case}", title, workload, figures)


if __name__ == "__main__":
    main()
