"""What the pipeline adds to the engine: a job's wall time after start-up, over the seconds its engine was busy.

    python benchmarks/overhead.py [--rows 2000] [--rows-per-unit 100]

Rows are docstrings of installed packages; the model has random weights. A small model is the hard case: the larger the
model, the smaller the share of reading, tokenizing, shipping and writing.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

from batchloom import pipelines
from batchloom.pipelines.config import InputConfig, JobConfig, OutputConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from docstrings import corpus  # noqa: E402

SUMMARIZER = ROOT / "examples/demo_models/docs-bart-mini"
TARGET = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rows-per-unit", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), arguments.rows, arguments.rows_per_unit)
        manifest = pipelines.run(job)
    timing = manifest.timing
    wall = timing["wall_seconds"] - timing["startup_seconds"]
    busy = timing["engine_busy_seconds"]
    print(f"rows {manifest.totals['rows']}, units {manifest.timing['units_computed']}")
    print(f"start-up {timing['startup_seconds']:.1f} s, then wall {wall:.1f} s, engine busy {busy:.1f} s")
    print(f"wall over busy {wall / busy:.3f} (target {TARGET})")


def make_job(folder: Path, num_rows: int, rows_per_unit: int) -> JobConfig:
    (folder / "corpus").mkdir()
    for number, shard in enumerate(corpus(num_rows)):
        (folder / f"corpus/{number:02d}.parquet").write_bytes(shard)
    make_model(folder / "model")
    return JobConfig(
        task="summarization",
        model=str(folder / "model"),
        input=InputConfig(paths=(str(folder / "corpus"),), rows_per_unit=rows_per_unit),
        output=OutputConfig(path=str(folder / "out")),
        task_options={"long_documents": "truncate"},
    )


def make_model(folder: Path) -> None:
    """A BART far smaller than any that people use, which reads the tokens of the demo's summarizer."""
    torch.manual_seed(0)
    config = BartConfig.from_pretrained(
        SUMMARIZER,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=1024,
        init_std=64**-0.5,  # with BART's 0.02 a model this narrow says the same token whatever it reads
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    GenerationConfig.from_pretrained(SUMMARIZER, num_beams=2, max_length=32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SUMMARIZER / name, folder)


if __name__ == "__main__":
    main()
