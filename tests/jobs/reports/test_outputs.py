"""What is said of an output: by run, show, status, plan and report, finished and unfinished."""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.jobs.reports import view
from batchloom.pipelines.ledger import heartbeat
from batchloom.pipelines.ledger.heartbeat import Heartbeat
from batchloom.pipelines.ledger.sealed import FOOTER_KEY
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.telemetry.usage import ReplicaUsage, Usage

Run = Callable[..., Any]
KINDS = {"empty_text": 1, "null_text": 1, "too_long": 1}


def test_a_run_under_json_tells_every_event(finished: Any) -> None:
    assert finished.said.code == 0
    assert finished.said.err == ""
    planned, starting, *units, last = finished.said.json
    assert planned == {
        "event": "planned", "num_shards": 1, "num_units": 3, "num_rows": 30, "num_units_done": 0, "num_rows_done": 0,
        "num_parts": 3, "num_errors_done": 0,
    }  # fmt: skip
    assert starting == {"event": "replicas_starting"}
    assert {unit["event"] for unit in units} - {"waiting", "replicas", "progress"} == {
        "unit_done",
        "part_done",
    }  # a busy machine is slow to start
    assert sum(unit["num_rows"] for unit in units if unit["event"] == "unit_done") == 30
    assert last["event"] == "finished"
    assert last["totals"]["errors"] == 3
    assert last["errors_by_kind"] == KINDS


def test_a_run_of_a_finished_job_says_so_and_computes_nothing(batchloom: Run, finished: Any) -> None:
    said = batchloom("run", finished.job)
    assert said.code == 0
    moment, _, line = said.err.partition("  ")
    assert line == "30 rows of 1 shard in 3 units; 30 rows in 3 units are done already\n"
    datetime.fromisoformat(moment)
    assert "30 rows, 27 answered, 3 errors (1 empty_text, 1 null_text, 1 too_long)" in said.out
    assert "all 3 were done already; nothing was computed" in said.out
    assert f"Output  {finished.output}" in said.out


def test_verify_says_that_all_rows_are_there(batchloom: Run, finished: Any) -> None:
    said = batchloom("verify", finished.output)
    assert said.code == 0
    assert said.out == (
        "30 rows in 3 parts, 30 in the input; 3 error rows.\n"
        "Every input row is there once, and every part is as it was written.\n"
    )


def test_verify_fails_and_names_the_part(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished.output, folder)
    part = sorted(folder.glob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-1])
    said = batchloom("verify", folder)
    assert said.code == 1
    assert f"1 problem:\n  {part.name}: it has " in said.out
    assert batchloom("verify", folder, "--json").json[0]["ok"] is False


def test_verify_of_an_unfinished_job_says_what_to_do(batchloom: Run, unfinished: Path) -> None:
    said = batchloom("verify", unfinished)
    assert said.code == 2
    assert "is not finished: 2 parts and no manifest. Run the job again" in said.err


def test_a_job_file_stands_for_its_output(batchloom: Run, finished: Any) -> None:
    assert batchloom("verify", finished.job).out == batchloom("verify", finished.output).out


def test_show_prints_rows_and_what_they_add_up_to(batchloom: Run, finished: Any) -> None:
    said = batchloom("show", finished.output, "--rows", "30")
    lines = said.out.splitlines()
    assert lines[0].split() == ["id", "summary_text"]
    assert len(lines) == 1 + 30 + 2
    assert any(line.split()[:2] == ["<b>3</b>", "null_text:"] for line in lines)
    assert lines[-1] == "30 rows, 27 answered, 3 errors (1 empty_text, 1 null_text, 1 too_long)"


def test_show_takes_its_rows_from_all_parts(batchloom: Run, finished: Any) -> None:
    (said,) = batchloom("show", finished.output, "--rows", "3", "--json").json
    assert [row["id"] for row in said["rows"]] == ["<b>0</b>", "<b>10</b>", "<b>20</b>"]


def test_show_works_while_the_job_is_running(batchloom: Run, unfinished: Path) -> None:
    (shown,) = batchloom("show", unfinished, "--columns", "id", "--json").json
    assert shown["rows"][0] == {"id": "<b>10</b>"}
    said = batchloom("show", unfinished, "--columns", "id")
    assert (
        said.out.splitlines()[-1] == "Not finished. So far: 20 rows, 18 answered, 2 errors (1 empty_text, 1 too_long)"
    )


def test_show_says_where_a_kept_text_is_none(batchloom: Run, unfinished: Path) -> None:
    """A column is copied as it is; to decode it was a traceback."""
    part = sorted(unfinished.glob("*.parquet"))[0]
    table = pq.read_table(part)
    ids = pa.array([b"\xff\xfe"] * table.num_rows)
    text = pa.Array.from_buffers(pa.string(), len(ids), ids.buffers())
    footer = {FOOTER_KEY: pq.read_metadata(part).metadata[FOOTER_KEY]}
    pq.write_table(table.set_column(0, "id", text).replace_schema_metadata(footer), part)
    said = batchloom("show", unfinished, "--json")
    assert said.code == 0
    assert said.json[0]["rows"][0]["id"] == "(bytes that are no UTF-8)"


def test_a_part_that_was_cut_short_is_not_counted(unfinished: Path) -> None:
    first, second = sorted(unfinished.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    assert [record.part for record in view.look(str(unfinished)).records] == [second.name]


def test_status_of_an_unfinished_job_says_how_far_it_is(batchloom: Run, unfinished: Path) -> None:
    said = batchloom("status", unfinished)
    assert re.search(r"Rows +20 of 30 \(67%\)", said.out)
    assert re.search(r"Parts +2\n", said.out)
    assert "not finished" in said.out
    assert re.search(r"Last part +written .* ago", said.out)


def test_status_tells_a_job_that_runs_from_one_that_was_killed(batchloom: Run, unfinished: Path) -> None:
    store = Store(str(unfinished))
    beat = Heartbeat(
        run="r", beat=3, started=time.time(), at=time.time(), host="elsewhere", user_id=0, process_id=7,
        fingerprint="f", stage="", num_rows=90, num_rows_done=40, num_errors=0, rows_per_second=10.0,
        input_tokens_per_second=900.0, output_tokens_per_second=80.0, num_replicas=2, trouble="a replica was lost",
        num_replicas_starting=1, num_units_in_flight=4, padding=1.05, hint="starved by tokenization: more CPUs",
        usage=Usage(loading=10.0, computing=70.0, waiting=20.0),
        most_waiting=(ReplicaUsage("10.0.0.9", 7, Usage(5.0, 30.0, 15.0)), ReplicaUsage("", 8, Usage(5.0, 40.0, 5.0))),
    )  # fmt: skip
    heartbeat.write(store, beat)
    said = batchloom("status", unfinished).out
    for line in (
        r"State +running\n", r"Driver +process 7 on elsewhere, heard \d\S* s ago\n", r" of 90 \(",
        r"Speed +10.0 rows/s, 900 tokens/s in, 80.0 out, padding 1.05; 5.0 s left\n", r"Trouble +a replica was lost\n",
        r"Replicas +2 alive, 1 pending, 4 units in flight; computed 70%, waited for units 20%, loaded 10%; "
        r"the one that waits longest, on 10.0.0.9: computed 60%, waited for units 30%, loaded 10%\n",
        r"Hint +starved by tokenization: more CPUs\n",
    ):  # fmt: skip
        assert re.search(line, said), (line, said)
    heartbeat.write(store, replace(beat, at=time.time() - 120))
    said = batchloom("status", unfinished).out
    assert "not finished; the same command goes on with it" in said
    assert re.search(r"Ended +without a word .*process 7 on elsewhere, heard 2 min 0\d s ago.*a replica was lost", said)
    heartbeat.write(store, replace(beat, ended="Stop: SIGTERM"))
    assert re.search(r"Ended +\d\S* s ago: Stop: SIGTERM", batchloom("status", unfinished).out)
    (told,) = batchloom("status", unfinished, "--json").json
    assert told["running"] is False
    assert told["heartbeat"]["process_id"] == 7


def test_status_counts_answers_whose_part_is_not_written(batchloom: Run, unfinished: Path) -> None:
    """They are done: the next run computes nothing of them. Leftovers of parts that are there count once."""
    part = next(unfinished.glob("*.parquet"))
    answered = unfinished / "_batchloom/answers" / f"0123456789ab-{part.name[-16:-8]}"
    left_over = answered.with_name(part.name[-29:].removesuffix(".parquet"))
    for folder in (answered, left_over):
        folder.mkdir(parents=True)
        for name in ("000000000-000000003.pq", "000000002-000000004.pq", "000000004-000000006.pq"):
            (folder / name).write_bytes(b"x")
    (said,) = batchloom("status", unfinished, "--json").json
    assert (said["num_rows_done"], said["num_rows_in_parts"]) == (25, 20)
    assert re.search(r"Rows +25 of 30 \(83%\), 5 of them not yet in a part", batchloom("status", unfinished).out)


def test_show_finds_rows(batchloom: Run, finished: Any) -> None:
    def ids(*options: str) -> list[str]:
        (said,) = batchloom("show", finished.output, "--json", *options).json
        return [row["id"] for row in said["rows"]]

    assert ids("--where", "id = '<b>7</b>'") == ["<b>7</b>"]
    assert ids("--where", "id like '<b>2%' and error is null", "-n", "3") == ["<b>2</b>", "<b>20</b>", "<b>21</b>"]
    wrong = ["<b>3</b>", "<b>14</b>", "<b>25</b>"]
    assert ids("--errors", "-n", "100") == wrong
    assert [ids(f"--errors={kind}") for kind in ("null_text", "empty_text", "too_long")] == [[one] for one in wrong]
    assert ids("--errors=too_long,null_text") == [wrong[0], wrong[2]]
    assert ids("--errors", "--where", "num_input_tokens = 0 or error.kind = 'x'", "-n", "1") == wrong[:1]
    assert ids("--errors=no_such_kind") == []
    assert "too_long: " in batchloom("show", finished.output, "--errors=too_long").out
    said = batchloom("show", finished.output, "--where", "idd = 7")
    assert said.code == 2
    assert said.err.startswith("Error: --where: at character 1, there is no column 'idd'. Did you mean id?")


def test_status_of_an_output_that_was_spoilt_says_so(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished.output, folder)
    parts = sorted(folder.glob("*.parquet"))
    parts[0].unlink()
    parts[1].write_bytes(b"")
    assert "State      finished; 2 of 3 parts are missing or have changed since" in batchloom("status", folder).out
    (said,) = batchloom("status", folder, "--json").json
    assert said["parts_missing_or_changed"] == [part.name for part in parts[:2]]


def test_status_of_an_output_of_two_jobs_says_so(batchloom: Run, unfinished: Path) -> None:
    part = next(unfinished.glob("*.parquet"))
    table, footer = pq.read_table(part), json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    other = unfinished / f"{part.name[: -len('01234567.parquet')]}ffffffff.parquet"
    metadata = {FOOTER_KEY.decode(): json.dumps({**footer, "fingerprint": "f" * 64})}
    pq.write_table(table.replace_schema_metadata(metadata), other)
    said = batchloom("status", unfinished)
    assert "not finished; 2 configurations have written here: remove the parts of all but one" in said.out


def test_a_path_is_found_as_it_was_written(batchloom: Run, finished: Any) -> None:
    odd = Path(finished.output) / "nowhere" / ".."
    for command in ("verify", "status", "show", "report"):
        assert batchloom(command, odd).code == 0


def test_status_does_without_an_input_that_is_gone(batchloom: Run, unfinished: Path) -> None:
    record = unfinished / "_batchloom" / "job.json"
    record.write_text(record.read_text().replace("/corpus", "/gone"))
    (said,) = batchloom("status", unfinished, "--json").json
    assert (said["num_rows"], said["num_rows_done"], said["finished"]) == (None, 20, False)


def test_plan_says_what_a_run_would_do(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    said = batchloom("plan", finished.job, "--set", f"output.path={tmp_path / 'new'}")
    assert said.code == 0
    assert re.search(r"Input +30 rows, .* in 1 shard, 3 units", said.out)
    assert re.search(r"Done +0 of 3 units, 0 of 30 rows", said.out)
    assert re.search(r"Writes +id, summary_text, num_input_tokens", said.out)
    assert re.search(r"  num_beams: 1", said.out)
    assert not (tmp_path / "new").exists()


def test_plan_counts_what_is_done(batchloom: Run, finished: Any, unfinished: Path) -> None:
    (said,) = batchloom("plan", finished.job, "--output", unfinished, "--json").json
    assert (said["num_units"], said["num_units_done"], said["num_rows_done"]) == (3, 2, 20)
    (said,) = batchloom("plan", finished.job, "--output", unfinished, "--set", "output.mode=overwrite", "--json").json
    assert said["num_units_done"] == 0


def test_plan_is_refused_where_a_run_would_be(batchloom: Run, finished: Any) -> None:
    said = batchloom("plan", finished.job, "--set", "generation.max_length=9")
    assert said.code == 2
    assert "belongs to another configuration" in said.err
    assert "Fingerprint" in said.out


class Tags(HTMLParser):
    """The elements of a page and the addresses they load from."""

    VOID = {"meta", "br", "link"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_one_whole_page_that_loads_nothing(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert batchloom("report", finished.output, "--html", page).out == f"Report: {page}\n"
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses == ["data:,"]  # no icon is asked for
    assert not re.search(r"url\((?!#clip\d+\))", text)  # a plot's own frame
    assert "@import" not in text
    assert tags.seen.count("svg") >= 4
    assert "prefers-color-scheme: dark" in text


def test_what_comes_from_data_is_escaped_in_a_report(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    batchloom("report", finished.output, "--html", page)
    assert "&lt;b&gt;0&lt;/b&gt;" in page.read_text()
    assert "<b>0</b>" not in page.read_text()


def test_a_report_says_where_it_cannot_be_written(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    for option in ("--html", "--markdown"):
        said = batchloom("report", finished.output, option, tmp_path / "nowhere" / "file")
        assert said.code == 2
        assert f"{option} {tmp_path / 'nowhere' / 'file'}: cannot be written: No such file or directory" in said.err


def test_a_report_has_the_input_beside_its_samples(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    """The texts are not kept in the output; they are read from the shards, of rows with errors too."""
    page = tmp_path / "report.md"
    assert batchloom("report", finished.output, "--markdown", page).code == 0
    (first, *_) = pq.read_table(Path(finished.job).parent / "corpus")["text"].to_pylist()
    text = page.read_text()
    assert f"- text: {first}\n- summary\\_text: " in text
    assert "- text: word word" in text  # of the row that is too long
    assert "- text: (null)\n- error: null\\_text: " in text


def test_a_report_of_an_unfinished_job_leaves_out_its_speed(batchloom: Run, unfinished: Path, tmp_path: Path) -> None:
    said = batchloom("report", unfinished)
    assert re.search(r"State +not finished", said.out)
    assert "Speed" not in said.out
    page = tmp_path / "report.html"
    assert batchloom("report", unfinished, "--html", page).code == 0
    assert "rows a second" not in page.read_text()
    assert "Not finished: this is what is there now" in page.read_text()


def test_a_report_of_an_output_without_parts_is_not_an_error(batchloom: Run, unfinished: Path, tmp_path: Path) -> None:
    for part in unfinished.glob("*.parquet"):
        part.unlink()
    assert "0 rows" in batchloom("report", unfinished).out
    assert batchloom("report", unfinished, "--html", tmp_path / "report.html").code == 0
    assert batchloom("show", unfinished).code == 0
    assert batchloom("status", unfinished).code == 0


def test_a_report_says_its_figures_in_json(batchloom: Run, finished: Any) -> None:
    (said,) = batchloom("report", finished.output, "--json").json
    assert said["totals"]["rows"] == 30
    assert sum(said["lengths"]["Input lengths"]["counts"]) == 27
    assert json.dumps(said)


def test_errors_are_retried_by_the_command_line(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "out")
    retry = ("run", finished.job, "--output", tmp_path / "out")
    said = batchloom(*retry, "--retry-errors=not_utf8")
    assert said.code == 0
    assert "No row has an error of these kinds, but 1 empty_text, 1 null_text, 1 too_long" in said.err
    assert "nothing was computed" in said.out
    said = batchloom(*retry, "--retry-errors=null_test", "--json")
    assert said.code == 2
    assert "so far: 1 empty_text, 1 null_text, 1 too_long" in said.json[-1]["message"]
    said = batchloom(*retry, "--retry-errors", "--json")
    assert said.code == 0
    assert said.json[1] == {"event": "retrying", "num_parts": 3, "errors_by_kind": KINDS, "other_errors": {}}
    assert said.json[-1]["errors_by_kind"] == KINDS
    assert batchloom("verify", tmp_path / "out").code == 0


def test_an_output_without_its_job_record_is_shown(batchloom: Run, unfinished: Path) -> None:
    """ "holds no batchloom output" was said of parts that say themselves whose they are."""
    (unfinished / "_batchloom" / "job.json").unlink()
    assert "Not finished. So far: 20 rows" in batchloom("show", unfinished, "--columns", "id").out
    assert re.search(r"Rows +20\n", batchloom("status", unfinished).out)
    assert batchloom("report", unfinished, "--html", unfinished / "_report.html").code == 0
    assert "is not finished: 2 parts" in batchloom("verify", unfinished).err


@pytest.mark.parametrize("command", ["status", "show", "report", "verify"])
def test_of_the_folder_above_the_outputs_below_are_named(batchloom: Run, unfinished: Path, command: str) -> None:
    """Each Parquet file below was read and had a line of its own."""
    said = batchloom(command, unfinished.parent)
    assert said.code == 2
    assert f"holds no batchloom output. Below it are outputs: {unfinished.name}." in said.err
    assert len(said.err.splitlines()) == 1


def test_a_part_with_a_strange_footer_is_not_counted(unfinished: Path) -> None:
    first, second = sorted(unfinished.glob("*.parquet"))
    for footer in ("{}", "[]", "{", '{"counts": {}}'):
        pq.write_table(pq.read_table(first).replace_schema_metadata({b"batchloom": footer}), first)
        assert [record.part for record in view.look(str(unfinished)).records] == [second.name]
