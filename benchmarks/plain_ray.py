"""Plain Ray Data around other engines, from Parquet to Parquet: the rivals of benchmarks/pipeline.py.

Each is one actor in `map_batches` on all cores, as one writes it down. transformers pads batches of rows as they come;
CTranslate2 computes in int8 and gets large batches, which it sorts by length and cuts by tokens itself.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.record import num_cores

TRIED_SHARE, TRIED_ROWS = 0.1, 128  # of the rows, and at least: what settings are tried on


class Transformers:
    """`setting`: dtype, and rows of a batch."""

    def __init__(self, folder: str, setting: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        dtype = setting.partition(", ")[0]  # told, because the default is the checkpoint's
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()

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

    @staticmethod
    def rows_of(setting: str) -> int:
        return int(setting.split()[-1])

    @staticmethod
    def settings() -> list[str]:
        return [f"{dtype}, batches of {size}" for dtype in ("float32", "bfloat16") for size in (32, 128)]

    @staticmethod
    def prepare(folder: Path) -> None:
        """Nothing: transformers reads the checkpoint as it is."""


class CTranslate2:
    """`setting`: workers, among which the cores are divided, and tokens of a batch."""

    def __init__(self, folder: str, setting: str) -> None:
        import ctranslate2
        from transformers import AutoTokenizer, GenerationConfig

        workers, tokens = (int(one.split()[0]) for one in setting.split(", "))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_tokens = json.loads((Path(folder) / "config.json").read_text())["max_position_embeddings"]
        self.translator = ctranslate2.Translator(
            str(Path(folder).parent / "ctranslate2"), compute_type="int8",
            inter_threads=workers, intra_threads=num_cores() // workers,
        )  # fmt: skip
        asked = GenerationConfig.from_pretrained(folder)
        self.options = {
            "max_batch_size": tokens,
            "batch_type": "tokens",
            "max_input_length": 0,  # texts are cut here, as for the others
            "beam_size": asked.num_beams or 1,
            "no_repeat_ngram_size": asked.no_repeat_ngram_size or 0,
            # transformers counts the decoder's start token, and an end token that it forces, which is not answered here
            "max_decoding_length": asked.max_length - 1 - (asked.forced_eos_token_id is not None),
            "min_decoding_length": max(0, (asked.min_length or 0) - 1),
        }

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        every = self.tokenizer(list(batch["text"]), truncation=True, max_length=self.max_tokens)["input_ids"]
        words = [self.tokenizer.convert_ids_to_tokens(ids) for ids in every]
        answers = self.translator.translate_batch(words, **self.options)
        ids = [self.tokenizer.convert_tokens_to_ids(answer.hypotheses[0]) for answer in answers]
        return {"id": batch["id"], "summary_text": self.tokenizer.batch_decode(ids, skip_special_tokens=True)}

    @staticmethod
    def rows_of(_: str) -> int:
        return 4096  # so that there is something to sort

    @staticmethod
    def settings() -> list[str]:
        workers = sorted({1, num_cores()})
        return [f"{count} workers, {tokens} tokens" for count in workers for tokens in (2048, 8192, 32768)]

    @staticmethod
    def prepare(folder: Path) -> None:
        """Convert `folder`/model, spelled as the converter wants it."""
        from ctranslate2.converters import TransformersConverter

        source = folder / "spelled for the converter"
        shutil.copytree(folder / "model", source)
        old = {"normalize_before": False, "normalize_embedding": True, "static_position_embeddings": False}
        (source / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | old))
        TransformersConverter(str(source)).convert(str(folder / "ctranslate2"), quantization="int8")


RIVALS = {"transformers": Transformers, "ctranslate2": CTranslate2}


def run(system: str, folder: Path, setting: str, out: Path) -> dict[str, float]:
    """Run a rival over `folder`/in with `folder`/model, from Parquet to Parquet."""
    import ray

    cores, actor = num_cores(), RIVALS[system]
    ray.init(num_cpus=cores + 2, logging_level="warning")  # room for reading and writing beside the actor
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(str(folder / "in")).map_batches(
        actor, fn_constructor_args=(str(folder / "model"), setting), batch_size=actor.rows_of(setting),
        compute=ray.data.ActorPoolStrategy(size=1), num_cpus=cores,
    )  # fmt: skip
    data.write_parquet(str(out))
    return {"rows": pq.read_table(out).num_rows}


def fastest(system: str, folder: Path) -> str:
    """Return the setting that is fastest on a part of the rows, tried in this process.

    Raises: ImportError where CTranslate2 is not installed.
    """
    actor = RIVALS[system]
    actor.prepare(folder)
    table = pq.read_table(folder / "in")
    num_tried = max(TRIED_ROWS, round(TRIED_SHARE * table.num_rows))
    some = table.take(list(range(0, table.num_rows, max(1, table.num_rows // num_tried)))).to_pydict()
    took = {}
    for setting in actor.settings():
        ready = actor(str(folder / "model"), setting)
        ready({name: values[:32] for name, values in some.items()})
        begin, size = time.perf_counter(), actor.rows_of(setting)
        for first in range(0, len(some["text"]), size):
            ready({name: values[first : first + size] for name, values in some.items()})
        took[setting] = time.perf_counter() - begin
        print(f"tried: {system}, {setting}: {took[setting]:.2f} s", flush=True)
    return min(took, key=lambda setting: took[setting])
