"""The job file of each task in examples/, run through Ray from Parquet to Parquet, with a tiny model and few rows."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.jobs import spec
from batchloom.pipelines.tasks import TASKS

pytestmark = pytest.mark.usefixtures("ray_cluster")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SHORT = {"max_new_tokens": 6}


def rows(make_sentences, task):
    """Every column that an example reads; some texts longer than the models, some rows twice, one null."""
    texts = [*make_sentences(12, seed=30), " ".join(make_sentences(12, seed=31))]
    texts = [*texts, texts[0], None]
    if task in ("text2text-generation", "fill-mask"):  # no long texts here: they are errors, by design
        texts[12] = texts[11]
    headlines = [text and text[:50] + " <mask>" for text in texts]
    return {
        "id": list(range(len(texts))), "text": texts, "body": texts, "context": texts, "headline": headlines,
        "question": ["Where is the river?"] * len(texts), "title": ["A title"] * len(texts),
        "turns": [text and text.split(". ") for text in texts], "persona": ["i sail", None, "i read"] * 5,
        "summaries": [[text and text[:30], "A title"] for text in texts],
    }  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_example_of_a_task_runs_and_answers_as_without_ray(
    ask, model_of, make_sentences, output_table, tmp_path, task
):
    config = spec.load(str(EXAMPLES / f"{task.replace('-', '_')}.yaml"))
    assert config.task == task
    columns = rows(make_sentences, task)
    columns = {name: pa.array(values) for name, values in columns.items()}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "shard.parquet", row_group_size=6)
    model = model_of(task)
    generation = (
        {**config.generation, **SHORT} if config.generation or task in ("summarization", "conversational") else {}
    )
    config = replace(
        config,
        model=model,
        input=replace(config.input, paths=(str(tmp_path / "in"),), rows_per_unit=6),
        output=replace(config.output, path=str(tmp_path / "out")),
        generation=generation,
        engine=replace(config.engine, dtype="float32", device="cpu"),
    )
    manifest = pipelines.run(config)
    assert manifest.totals["rows"] == 15
    assert manifest.errors_by_kind == {"null_text": 1}
    assert pipelines.verify(config.output.path).ok
    table = output_table(config.output.path)
    assert table["id"].to_pylist() == list(range(15))
    read = {name: getattr(config.input, name) for name in ("text_column", "question_column", "context_column")}
    alone = ask(task, model, columns, options=config.task_options, generation=generation, **read)
    assert rounded(table.drop_columns(["id"]).to_pylist()) == rounded(alone.to_pylist())


def rounded(value):
    """To 3 digits: the last ones of a float depend on the shape of the batch that it was computed in."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
