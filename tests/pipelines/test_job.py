"""Whole jobs on a small Ray, from Parquet to Parquet."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private import state as ray_state

from batchloom import models, pipelines
from batchloom.models.errors import ModelError
from batchloom.pipelines.errors import ConfigError, ErrorLimitError, InputError, JobError, OutputError
from batchloom.pipelines.metrics import (
    Finished,
    PartDone,
    Planned,
    Replicas,
    ReplicasStarting,
    UnitDone,
    UnitFailed,
    Waiting,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def parts(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.parquet")}


def test_every_row_comes_out_once_with_its_kept_columns(make_job, output_table) -> None:
    job = make_job()
    events = []
    manifest = pipelines.run(job, events.append)
    table = output_table(job.output.path)
    assert table["id"].to_pylist() == list(range(75))
    assert table["note"].to_pylist() == [f"note {i}" if i % 3 else None for i in range(75)]
    assert table.column_names == [
        "id", "note", "summary_text",
        "num_input_tokens", "num_output_tokens", "num_truncated_tokens", "finish_reason", "error",
    ]  # fmt: skip
    assert table["error"].null_count == 75
    assert all(table["summary_text"].to_pylist())
    assert manifest.totals["rows"] == manifest.totals["ok"] == 75
    assert manifest.totals["output_tokens"] == sum(table["num_output_tokens"].to_pylist())
    assert manifest.totals["input_tokens"] == sum(table["num_input_tokens"].to_pylist())
    assert manifest.timing["engine_prompt_tokens"] == manifest.totals["input_tokens"]
    assert manifest.timing["engine_padded_tokens"] >= manifest.timing["engine_prompt_tokens"]
    kinds = [type(event) for event in events if not isinstance(event, Replicas | Waiting)]  # at any time
    assert kinds == [Planned, ReplicasStarting, *[UnitDone, PartDone] * manifest.totals["parts"], Finished]
    assert pipelines.verify(job.output.path).ok


def test_answers_are_those_of_the_reference(make_job, output_table, make_sentences, checkpoint: str) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, BartTokenizerFast

    job = make_job(generation={})  # the checkpoint's own: beam 4 and bart-large-cnn's processors
    pipelines.run(job)
    ours = output_table(job.output.path)["summary_text"].to_pylist()
    tokenizer = BartTokenizerFast.from_pretrained(checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    texts = make_sentences(40, seed=1)
    theirs = []
    with torch.no_grad():
        for text in texts:
            tokens = model.generate(**tokenizer(text, return_tensors="pt"))
            theirs.append(tokenizer.decode(tokens[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    assert ours[:40] == theirs


def test_an_answer_does_not_depend_on_units_or_replicas(make_job, output_table, tmp_path) -> None:
    answers = {}
    for rows_per_unit, replicas in ((25, 1), (7, 1), (64, 2), (1000, 1)):
        output = tmp_path / f"{rows_per_unit}"
        pipelines.run(make_job(output=str(output), rows_per_unit=rows_per_unit, replicas=replicas))
        answers[rows_per_unit] = output_table(output)
    assert all(table == answers[25] for table in answers.values())


def test_resume_computes_only_what_is_missing(make_job) -> None:
    job = make_job()
    before = pipelines.run(job)
    whole = parts(job.output.path)
    for name in list(whole)[:2]:
        (Path(job.output.path) / name).unlink()
    after = pipelines.run(job)
    assert after.timing["units_computed"] == 2
    assert after.timing["units_resumed"] == len(whole) - 2
    assert parts(job.output.path) == whole
    assert after.totals == before.totals
    assert after.parts == before.parts


def test_a_finished_job_is_left_alone(make_job) -> None:
    job = make_job()
    before = pipelines.run(job)
    events = []
    assert pipelines.run(job, events.append) == before
    assert ReplicasStarting not in map(type, events)


def test_no_actor_of_ours_outlives_the_job(make_job) -> None:
    """A process that ran many jobs had a roster of each."""

    def alive() -> list[str]:
        return [actor["ActorClassName"] for actor in ray_state.actors().values() if actor["State"] != "DEAD"]

    pipelines.run(make_job(mode="overwrite"))
    deadline = time.monotonic() + 30
    while "Entries" in alive():
        assert time.monotonic() < deadline, alive()
        time.sleep(0.1)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_part_cut_short_is_computed_again(make_job, is_closed: bool) -> None:
    job = make_job()
    pipelines.run(job)
    whole = parts(job.output.path)
    if not is_closed:
        (Path(job.output.path) / "_batchloom" / "manifest.json").unlink()
    name = sorted(whole)[0]
    (Path(job.output.path) / name).write_bytes(whole[name][:-100])
    assert pipelines.run(job).timing["units_computed"] == 1
    assert parts(job.output.path) == whole


def test_another_configuration_is_refused_and_named(make_job) -> None:
    job = make_job()
    pipelines.run(job)
    whole = parts(job.output.path)
    with pytest.raises(OutputError, match=r"generation\.num_beams was 2, is 1"):
        pipelines.run(make_job(generation={"num_beams": 1, "max_length": 16, "min_length": 2}))
    with pytest.raises(OutputError, match="is not empty"):
        pipelines.run(make_job(mode="error"))
    assert parts(job.output.path) == whole
    pipelines.run(make_job(generation={"num_beams": 1, "max_length": 16, "min_length": 2}, mode="overwrite"))
    assert not set(parts(job.output.path)) & set(whole)
    assert pipelines.verify(job.output.path).ok


def test_changed_inputs_are_not_mixed_with_old_answers(make_job, corpus) -> None:
    job = make_job()
    pipelines.run(job)
    pq.write_table(pa.table({"id": [1], "text": ["another"], "note": ["x"]}), corpus / "c.parquet")
    with pytest.raises(OutputError, match="have changed since"):
        pipelines.run(job)


def test_a_new_shard_is_added_to_a_finished_job(make_job, corpus, output_table) -> None:
    job = make_job()
    pipelines.run(job)
    pq.write_table(pa.table({"id": [75], "text": ["One more."], "note": ["x"]}), corpus / "d.parquet")
    assert pipelines.run(job).timing["units_computed"] == 1
    assert output_table(job.output.path)["id"].to_pylist() == list(range(76))
    assert pipelines.verify(job.output.path).ok


def test_files_of_somebody_else_are_never_touched(make_job, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.parquet").write_bytes(b"precious")
    for mode in ("resume", "overwrite"):
        with pytest.raises(OutputError, match=r"no batchloom job wrote.*thesis"):
            pipelines.run(make_job(mode=mode))
    assert (tmp_path / "out" / "thesis.parquet").read_bytes() == b"precious"


def test_a_file_of_somebody_that_came_later_is_never_touched(make_job) -> None:
    """Overwriting removed every Parquet file of the folder, whoever had put it there."""
    job = make_job()
    pipelines.run(job)
    thesis = Path(job.output.path) / "thesis.parquet"
    thesis.write_bytes(b"precious")
    for mode in ("resume", "overwrite"):
        with pytest.raises(OutputError, match=r"no batchloom job wrote \(thesis\.parquet\)"):
            pipelines.run(make_job(mode=mode))
    assert thesis.read_bytes() == b"precious"


def test_a_damaged_page_of_an_unfinished_job_is_computed_again(make_job) -> None:
    """The footer was whole, so the part passed for done, and verify held it to its own wrong hash."""
    job = make_job()
    pipelines.run(job)
    whole = parts(job.output.path)
    (Path(job.output.path) / "_batchloom" / "manifest.json").unlink()
    name = sorted(whole)[0]
    content = bytearray(whole[name])
    content[60] ^= 255
    (Path(job.output.path) / name).write_bytes(content)
    assert pipelines.run(job).timing["units_computed"] == 1
    assert parts(job.output.path) == whole


def test_a_job_that_was_killed_before_its_last_mark_gets_it(make_job) -> None:
    job = make_job()
    pipelines.run(job)
    (Path(job.output.path) / "_SUCCESS").unlink()
    assert pipelines.run(job).timing["units_computed"] == 0
    assert (Path(job.output.path) / "_SUCCESS").exists()


def test_a_job_beside_another_one_is_not_closed(make_job) -> None:
    """Both found the folder empty and ended well, and every row was there twice."""
    job, other = make_job(), make_job(generation={"num_beams": 1, "max_length": 16, "min_length": 2})

    def run_other(event) -> None:
        if isinstance(event, ReplicasStarting):
            pipelines.run(other, even_if_running=True)

    others = f"-{pipelines.plan(other).fingerprint[:8]}.parquet"
    with pytest.raises(JobError, match=rf"holds 9 parts that another job wrote while this one ran \(\*{others}\)"):
        pipelines.run(job, run_other)
    for path in Path(job.output.path).glob(f"*{others}"):
        path.unlink()
    assert pipelines.run(job).timing["units_computed"] == 0
    assert pipelines.verify(job.output.path).ok


def test_rows_that_cannot_be_answered_keep_their_place(make_job, output_table, tmp_path) -> None:
    texts = ["fine", None, "", " \n\t ", "word " * 500, "😀 עברית \x00 nul", "fine"]
    folder = tmp_path / "odd"
    folder.mkdir()
    pq.write_table(pa.table({"id": range(7), "text": texts}), folder / "odd.parquet")
    job = make_job(paths=(str(folder),))
    manifest = pipelines.run(job)
    table = output_table(job.output.path)
    kinds = [error and error["kind"] for error in table["error"].to_pylist()]
    assert kinds == [None, "null_text", "empty_text", "empty_text", "too_long", None, None]
    assert [text is None for text in table["summary_text"].to_pylist()] == [kind is not None for kind in kinds]
    assert manifest.errors_by_kind == {"empty_text": 2, "null_text": 1, "too_long": 1}
    summaries = table["summary_text"].to_pylist()
    assert summaries[0] == summaries[6]

    cut = make_job(paths=(str(folder),), task_options={"long_documents": "truncate"}, output=str(tmp_path / "cut"))
    pipelines.run(cut)
    row = output_table(cut.output.path).slice(4, 1).to_pylist()[0]
    assert row["error"] is None
    assert row["num_input_tokens"] == 128
    assert row["num_truncated_tokens"] > 300


def test_a_shard_of_nulls_has_the_schema_of_the_others(make_job, corpus, output_table) -> None:
    pq.write_table(pa.table({"id": [75, 76], "text": pa.nulls(2), "note": pa.nulls(2)}), corpus / "d.parquet")
    job = make_job()
    pipelines.run(job)
    assert output_table(job.output.path)["error"].null_count == 75
    schemas = [pq.read_schema(path).remove_metadata() for path in Path(job.output.path).glob("*.parquet")]
    assert all(schema == schemas[0] for schema in schemas)


def test_too_many_errors_stop_the_job_and_keep_its_parts(make_job, corpus) -> None:
    pq.write_table(pa.table({"id": range(75, 95), "text": pa.nulls(20), "note": pa.nulls(20)}), corpus / "d.parquet")
    with pytest.raises(ErrorLimitError, match=r"of 95 rows failed \(\d+ null_text\); limits\.max_error_rate is 0\.1"):
        pipelines.run(make_job(max_error_rate=0.1))
    assert not (Path(make_job().output.path) / "_SUCCESS").exists()
    assert pipelines.run(make_job(max_error_rate=20 / 95)).totals["errors"] == 20
    with pytest.raises(ErrorLimitError, match="20 of 95 rows failed"):  # finished, and held to another limit
        pipelines.run(make_job(max_error_rate=0.0))


def test_degenerate_answers_are_counted_and_too_many_stop_the_job(make_job, checkpoint) -> None:
    """All tokens but those of begin and end are banned, so every answer is empty."""
    banned = [token for token in range(models.describe(checkpoint).config.vocab_size) if token not in (0, 2)]
    changes = {"generation": {"num_beams": 1, "max_length": 16, "min_length": 0, "suppress_tokens": banned}}
    told = (
        r"of 75 answers are degenerate \(\d+ empty; truncated ones do not count\); limits\.max_degenerate_rate is 0\.5"
    )
    with pytest.raises(ErrorLimitError, match=told):
        pipelines.run(make_job(**changes, max_degenerate_rate=0.5))
    assert not (Path(make_job().output.path) / "_SUCCESS").exists()
    manifest = pipelines.run(make_job(**changes))
    assert {kind: manifest.degenerate[kind] for kind in ("empty", "copied", "repeating")} == {
        "empty": 75,
        "copied": 0,
        "repeating": 0,
    }
    assert all(record.degenerate["empty"] == record.num_rows for record in manifest.parts)
    assert pipelines.verify(make_job().output.path).ok
    with pytest.raises(ErrorLimitError, match="75 of 75"):  # finished, and held to a limit
        pipelines.run(make_job(**changes, max_degenerate_rate=0.9))


def test_a_job_without_rows_is_closed_too(make_job, tmp_path) -> None:
    (tmp_path / "none").mkdir()
    pq.write_table(
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}), tmp_path / "none" / "e.parquet"
    )
    manifest = pipelines.run(make_job(paths=(str(tmp_path / "none"),)))
    assert manifest.totals["rows"] == 0
    assert pipelines.verify(make_job().output.path).ok


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_column": "txet"}, InputError, "'txet' are not in the input. It has: id, text, note"),
        ({"text_column": "id"}, InputError, "holds int64, not text"),
        ({"keep_columns": ("id", "nose")}, InputError, "'nose'"),
        ({"paths": ("nowhere/*.parquet",)}, InputError, "matches no file"),
        ({"task": "summarisation"}, ConfigError, "summarization"),
        ({"task_options": {"long_document": "truncate"}}, ConfigError, "did you mean long_documents"),
        ({"task_options": {"long_documents": "drop"}}, ConfigError, "error, truncate"),
        ({"generation": {"num_beam": 4}}, Exception, "num_beam"),
        ({"rows_per_unit": 0}, ConfigError, "input.rows_per_unit: is 0"),
        ({"replicas": 40}, ConfigError, "logical CPUs"),
        ({"max_error_rate": 2.0}, ConfigError, "between 0 and 1"),
        ({"max_degenerate_rate": -0.1}, ConfigError, "limits.max_degenerate_rate: is -0.1, must be between 0 and 1"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_it_starts(make_job, changes, error, message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        pipelines.run(make_job(**changes))
    assert not parts(make_job().output.path)


def test_an_output_inside_the_input_is_refused(make_job, corpus) -> None:
    with pytest.raises(ConfigError, match="lie in each other"):
        pipelines.run(make_job(output=str(corpus / "summaries")))


@pytest.mark.parametrize(
    ("paths", "output"),
    [("in", "link/out"), ("link", "in/out"), ("link", "other/out"), ("link/*.parquet", "in")],
)
def test_an_output_inside_the_input_is_refused_through_whatever_links(
    make_job, make_corpus, tmp_path, paths, output
) -> None:
    """The first run ended with 0, the second one had each row twice."""
    make_corpus(tmp_path / "in")
    for link in ("link", "other"):
        (tmp_path / link).symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="lie in each other"):
        pipelines.plan(make_job(paths=(str(tmp_path / paths),), output=str(tmp_path / output)))


@pytest.mark.parametrize(
    ("paths", "output"),
    [("in[1]", "in[1]/out"), ("**/*.parquet", "out"), ("*/*.parquet", "out"), ("*.parquet", "out.parquet")],
)
def test_an_output_that_the_next_run_would_read_is_refused(make_job, make_corpus, tmp_path, paths, output) -> None:
    """The first run went well, and the second one refused to go on with what the first had written."""
    make_corpus(tmp_path / "in[1]")
    make_corpus(tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="lie in each other"):
        pipelines.plan(make_job(paths=(str(tmp_path / paths),), output=str(tmp_path / output)))


def test_an_empty_text_is_no_path(make_job) -> None:
    """As the shell makes of an unset variable: it stood for the working folder."""
    with pytest.raises(ConfigError, match=r"input\.paths: is empty(.|\n)*output\.path: is empty(.|\n)*model: is empty"):
        pipelines.plan(make_job(paths=("",), output="", model=""))


@pytest.mark.parametrize("output", ["file", "file/below/it"])
def test_an_output_on_a_file_is_refused_before_anything_is_read(make_job, tmp_path, output) -> None:
    """It was a listing that failed, after words about footers that are of no use."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"output.path: {tmp_path / 'file'} is there and no folder. Name another"):
        pipelines.plan(make_job(output=str(tmp_path / output)))


def test_a_model_folder_without_a_checkpoint_is_named(make_job, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(Exception, match="nothing") as caught:
        pipelines.run(make_job(model=str(tmp_path / "nothing")))
    assert type(caught.value).__name__ == "CheckpointError"


def test_relative_paths_work_from_any_folder(make_job, corpus, monkeypatch) -> None:
    monkeypatch.chdir(corpus.parent)
    job = make_job(paths=("corpus/*.parquet",), output="out")
    pipelines.run(job)
    assert pipelines.verify("out").ok
    monkeypatch.chdir(os.sep)
    assert pipelines.verify(str(corpus.parent / "out")).num_rows == 75


def test_more_ranks_than_the_heads_allow_are_refused_before_anything_starts(make_job) -> None:
    config = make_job()
    config = replace(config, engine=replace(config.engine, tensor_parallel=3))
    with pytest.raises(ModelError, match=r"tensor_parallel = 3 does not divide 4 attention heads\. Use 1, 2 or 4\."):
        pipelines.plan(config)


def test_a_shard_that_cannot_be_read_fails_its_units_and_no_others(make_job, corpus, tmp_path) -> None:
    """One unit's trouble ended the job, and what the others had not yet written was not computed."""
    (corpus / "b.parquet").rename(tmp_path / "b.parquet")
    (corpus / "b.parquet").symlink_to(tmp_path / "b.parquet")  # so that it can be put back as it was
    failed = []

    def take_a_file_away(event) -> None:
        if isinstance(event, ReplicasStarting):
            (corpus / "b.parquet").unlink()
        if isinstance(event, UnitFailed):
            failed.append((event.shard, event.start, event.stop))

    job = make_job()
    with pytest.raises(JobError) as caught:
        pipelines.run(job, take_a_file_away)
    said = str(caught.value)
    assert said.startswith("3 units failed. All others are done.\n  3 units of b.parquet (rows 0-8, 8-16, 16-25): ")
    assert f"Reading {corpus / 'b.parquet'} failed: FileNotFoundError" in said
    assert "UDF" not in said
    assert type(caught.value) is JobError
    assert sorted(failed) == [("b.parquet", 0, 8), ("b.parquet", 8, 16), ("b.parquet", 16, 25)]
    output = Path(job.output.path)
    kept = parts(output)
    assert len(kept) == len(pipelines.plan(job).parts)  # b.parquet is not there, and all others are done
    assert not (output / "_SUCCESS").exists()
    assert not (output / "_batchloom" / "manifest.json").exists()

    (corpus / "b.parquet").symlink_to(tmp_path / "b.parquet")
    assert pipelines.run(job).timing["units_computed"] == 3
    assert kept.items() <= parts(output).items()
    assert pipelines.verify(job.output.path).ok


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "config.json"])
def test_a_file_of_the_model_replaced_after_planning_ends_the_job(make_job, checkpoint, tmp_path, name) -> None:
    """All rows came from other weights under the planned ones' fingerprint, with exit 0."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    job = make_job(model=str(model))

    def replace_file(event: object) -> None:
        if not isinstance(event, ReplicasStarting):
            return
        content = bytearray((model / name).read_bytes())
        content[-2:] = b"\x00\x3f" if name == "model.safetensors" else b" }"
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").replace(model / name)

    with pytest.raises(ModelError, match=rf"{name.replace('.', '[.]')} is not the file that this job was planned with"):
        pipelines.run(job, replace_file)
    assert parts(job.output.path) == {}


def first_part_of(job) -> Path:
    return Path(job.output.path) / sorted(parts(job.output.path))[0]


def reopen(job) -> None:
    """Make a finished output one that was killed before its manifest."""
    for name in ("_SUCCESS", "_batchloom/manifest.json"):
        (Path(job.output.path) / name).unlink()


def test_parts_that_are_not_what_their_names_say_are_computed_again(make_job, caplog) -> None:
    """`cp partA partB` on an unfinished output: ten rows were lost, ten were there twice, and verify was content."""
    job = make_job()
    pipelines.run(job)
    whole = parts(job.output.path)
    reopen(job)
    first, second, third, *_ = (Path(job.output.path) / name for name in sorted(whole))
    second.write_bytes(whole[first.name])
    pq.write_table(pq.read_table(third).slice(0, 5), third)
    caplog.clear()
    assert pipelines.run(job).timing["units_computed"] == 2
    assert parts(job.output.path) == whole
    assert {f"{part.name} is computed again" in caplog.text for part in (second, third)} == {True}
    assert pipelines.verify(job.output.path).ok


@pytest.mark.parametrize("what", ["a part", "the output"])
def test_what_is_deleted_in_mid_run_is_named_and_computed_by_the_same_command(make_job, what: str) -> None:
    """The job ended with "all answered" and _SUCCESS, and 10 to 70 rows were missing."""
    job = make_job()
    done: list[str] = []

    def delete(event) -> None:
        if isinstance(event, PartDone):
            done.append(event.record.part)
            if len(done) == 3 and what == "a part":
                os.remove(f"{job.output.path}/{done[0]}")
            elif len(done) == 3:
                os.rename(job.output.path, f"{job.output.path}.deleted")  # rmtree races with those who write

    with pytest.raises(JobError, match=r"lost \d of 9 parts while the job ran|units? failed"):
        pipelines.run(job, delete)
    assert not (Path(job.output.path) / "_SUCCESS").exists()
    with pytest.raises(OutputError, match="is not finished"):
        pipelines.verify(job.output.path)
    assert pipelines.run(job).timing["units_resumed"] > 0
    assert pipelines.verify(job.output.path).ok
    assert pipelines.verify(job.output.path).num_rows == 75


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"job": 5}'])
def test_a_job_record_that_is_lost_decides_nothing(make_job, content: bytes | None) -> None:
    """Without it a finished output could not be resumed, overwritten or shown: no batchloom job had written there."""
    job = make_job()
    pipelines.run(job)
    record = Path(job.output.path) / "_batchloom" / "job.json"

    def harm() -> None:
        record.unlink() if content is None else record.write_bytes(content)

    harm()
    assert pipelines.run(job).timing["units_computed"] == 9  # the manifest of the run that computed them
    reopen(job)
    first_part_of(job).unlink()
    assert pipelines.run(job).timing["units_computed"] == 1
    harm()
    other = make_job(generation={"num_beams": 1, "max_length": 16, "min_length": 2})
    with pytest.raises(OutputError, match="belongs to another configuration:\n  9 parts"):
        pipelines.run(other)
    pipelines.run(replace(other, output=replace(other.output, mode="overwrite")))
    assert pipelines.verify(job.output.path).num_parts == 9


def test_a_readable_file_under_a_parts_name_that_is_no_part_is_not_overwritten(make_job) -> None:
    job = make_job(mode="overwrite")
    thesis = Path(job.output.path) / "part-thesis-0123456789ab-01234567.parquet"
    thesis.parent.mkdir()
    pq.write_table(pa.table({"id": [1]}), thesis)
    with pytest.raises(OutputError, match=r"no batchloom job wrote \(part-thesis"):
        pipelines.run(job)
    assert pq.read_table(thesis)["id"].to_pylist() == [1]


def test_a_note_in_the_output_blocks_the_job_and_verify_alike(make_job) -> None:
    """verify refused it, and run did not; readers of the folder fail at it."""
    job = make_job()
    note = Path(job.output.path) / "notes.txt"

    def write(event) -> None:
        if isinstance(event, UnitDone):
            note.write_text("mine")

    with pytest.raises(JobError, match=r"no batchloom job wrote \(notes\.txt\).*closed at once"):
        pipelines.run(job, write)
    with pytest.raises(OutputError, match=r"no batchloom job wrote \(notes\.txt\)"):
        pipelines.run(job)
    note.rename(note.with_name("_notes.txt"))
    assert pipelines.run(job).timing["units_computed"] == 0
    note.write_text("mine")
    assert pipelines.verify(job.output.path).problems == ["notes.txt: it is in the output and not in the manifest"]
    for mode in ("resume", "overwrite"):
        with pytest.raises(OutputError, match=r"no batchloom job wrote \(notes\.txt\)"):
            pipelines.run(make_job(mode=mode))
    assert note.read_text() == "mine"


def test_a_rolling_archive_keeps_the_answers_to_inputs_that_were_deleted(make_job, corpus) -> None:
    job = make_job()
    pipelines.run(job)
    (corpus / "b.parquet").unlink()
    pq.write_table(pa.table({"id": [75], "text": ["One more."], "note": ["x"]}), corpus / "d.parquet")
    with pytest.raises(
        OutputError, match=r"inputs that are gone since: b\.parquet \(parts: 3\).*set input\.missing: keep"
    ):
        pipelines.run(job)
    keeping = replace(job, input=replace(job.input, missing="keep"))
    events = []
    manifest = pipelines.run(keeping, events.append)
    assert manifest.timing["units_computed"] == 1
    assert (manifest.totals["rows"], manifest.totals["shards"]) == (76, 4)
    assert (events[0].num_rows, events[0].num_rows_done) == (76, 75)
    assert pq.read_table(job.output.path)["id"].to_pylist().count(50) == 1
    verification = pipelines.verify(job.output.path)
    assert (verification.ok, verification.num_rows, verification.num_input_rows) == (True, 76, 51)
    assert len(verification.notes) == 1
    assert pipelines.run(keeping) == manifest

    pq.write_table(pa.table({"id": [1], "text": ["another"], "note": ["x"]}), corpus / "c.parquet")
    with pytest.raises(OutputError, match="have changed since"):
        pipelines.run(keeping)
