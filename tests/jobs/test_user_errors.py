"""Every mistake that a person can make at the command line: one clear message, the right exit code, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.jobs.remote.dashboard import url_of
from batchloom.pipelines.errors import JobError

Run = Callable[..., Any]


def test_an_unknown_key_of_the_job_file(batchloom: Run, make_job: Run) -> None:
    job = make_job(input={"paths": ["x"], "text_colum": "body"})
    said = batchloom("run", job)
    assert said.code == 2
    assert said.err == (
        f"Error: {job} has 1 problem:\n  line 6  input.text_colum: unknown key. Did you mean text_column?\n"
    )
    assert said.out == ""


def test_no_job_at_all(batchloom: Run) -> None:
    said = batchloom("run")
    assert said.code == 2
    assert said.err.startswith("Error: The command line has 4 problems:\n  task: required and not there.")


def test_an_option_that_does_not_exist(batchloom: Run) -> None:
    said = batchloom("run", "--modle", "x")
    assert said.code == 2
    assert "No such option: --modle" in said.err


def test_a_glob_that_matches_nothing(batchloom: Run, make_job: Run, tmp_path: Path) -> None:
    said = batchloom("run", make_job(), "--input", tmp_path / "none-*.parquet")
    assert said.code == 2
    assert "none-*.parquet' matches no file. Check the spelling" in said.err


def test_a_column_that_is_missing(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--text-column", "body", "--keep-columns", "id, url")
    assert said.code == 2
    assert "Columns 'body', 'url' are not in the input. It has: id, text, note." in said.err


def test_a_column_that_is_not_text(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--text-column", "id")
    assert said.code == 2
    assert "Column 'id' holds int64, not text." in said.err


def test_a_folder_that_is_no_checkpoint(batchloom: Run, make_job: Run, tmp_path: Path) -> None:
    said = batchloom("run", make_job(), "--model", tmp_path)
    assert said.code == 2
    assert said.err.startswith("Error: ")
    assert str(tmp_path) in said.err
    assert "config.json" in said.err


def test_a_model_that_is_nowhere(batchloom: Run, make_job: Run, tmp_path: Path) -> None:
    said = batchloom("run", make_job(), "--model", tmp_path / "nowhere")
    assert said.code == 2
    assert "nowhere" in said.err


def test_a_file_that_is_no_parquet(batchloom: Run, make_job: Run, corpus: Path) -> None:
    (corpus / "broken.parquet").write_bytes(b"PAR1 no more")
    said = batchloom("run", make_job())
    assert said.code == 2
    assert "1 of 4 input files cannot be read as Parquet:" in said.err
    assert "broken.parquet" in said.err


def test_shards_whose_columns_do_not_go_together(batchloom: Run, make_job: Run, corpus: Path) -> None:
    pq.write_table(pa.table({"id": [[1]], "text": ["a"]}), corpus / "z.parquet")
    said = batchloom("run", make_job())
    assert said.code == 2
    assert "Column 'id' holds list<element: int64> in z.parquet and int64 in the shards before it" in said.err


def test_an_unknown_generation_option(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--set", "generation.num_beam=2")
    assert said.code == 2
    assert "num_beam" in said.err
    assert "num_beams" in said.err


def test_an_unknown_task_option(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--set", "task_options.long_document=truncate")
    assert said.code == 2
    assert "did you mean long_documents?" in said.err


def test_a_number_out_of_range(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--set", "input.rows_per_unit=0")
    assert said.code == 2
    assert "input.rows_per_unit: is 0, must be at least 1." in said.err


def test_all_that_only_a_plan_can_see_comes_at_once(batchloom: Run, make_job: Run) -> None:
    wrong = ["input.rows_per_unit=0", "limits.max_error_rate=2", "task_options.prefix=1", "input.paths=[/one, /two/*]"]
    said = batchloom("run", make_job(), *(word for key in wrong for word in ("--set", key)))
    assert said.code == 2
    assert (
        said.err
        == """\
Error: the job cannot run as it is:
  input.rows_per_unit: is 0, must be at least 1.
  limits.max_error_rate: is 2.0, must be between 0 and 1.
  task_options.prefix: must be a text or null; found 1.
  Input path '/one' matches no file.
  Input path '/two/*' matches no file. Check the spelling and the pattern; a folder is searched for files that end in \
.parquet, .jsonl, .ndjson, .json, .csv, .tsv, .txt, .text, or as those of input.format do. Others are named one by \
one, or by a glob.
"""
    )


def test_a_device_that_nobody_knows(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--set", "engine.device=gpu")
    assert said.code == 2
    assert "engine.device: the text 'gpu' is not one of auto, cpu or cuda." in said.err


def test_a_protocol_that_nobody_knows(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--input", "s4://bucket/x.parquet")
    assert said.code == 2
    assert "s4" in said.err


def test_an_output_of_another_configuration(batchloom: Run, finished: Any) -> None:
    said = batchloom("run", finished.job, "--set", "generation.max_length=9")
    assert said.code == 2
    assert "belongs to another configuration:\n  generation.max_length was 8, is 9\n" in said.err
    assert "output.mode: overwrite" in said.err


def test_an_output_that_must_be_empty(batchloom: Run, finished: Any) -> None:
    said = batchloom("run", finished.job, "--set", "output.mode=error")
    assert said.code == 2
    assert "is not empty" in said.err


def test_an_output_that_holds_other_files(batchloom: Run, make_job: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    said = batchloom("run", make_job(), "--output", tmp_path / "photos")
    assert said.code == 2
    assert "photos holds files that no batchloom job wrote (a.jpg)" in said.err


def test_an_output_beside_the_shards(batchloom: Run, make_job: Run, corpus: Path) -> None:
    said = batchloom("run", make_job(), "--output", corpus)
    assert said.code == 2
    assert "Choose an output folder beside the input." in said.err


def test_an_output_that_cannot_be_written(batchloom: Run, make_job: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = batchloom("run", make_job(), "--output", tmp_path / "file")
    assert said.code == 2
    assert (
        said.err == f"Error: output.path: {tmp_path}/file is there and no folder. Name another folder, or remove it.\n"
    )


@pytest.mark.parametrize("command", ["verify", "show", "status", "report"])
def test_a_folder_that_holds_no_output(batchloom: Run, tmp_path: Path, command: str) -> None:
    said = batchloom(command, tmp_path)
    assert said.code == 2
    assert f"{tmp_path} holds no batchloom output. Check the path" in said.err


def test_a_column_to_show_that_is_not_there(batchloom: Run, finished: Any) -> None:
    said = batchloom("show", finished.output, "--columns", "url")
    assert said.code == 2
    assert "--columns: url not in the output. It has: id, summary_text, " in said.err


def test_a_report_that_cannot_be_written(batchloom: Run, finished: Any, tmp_path: Path) -> None:
    said = batchloom("report", finished.output, "--html", tmp_path / "none" / "report.html")
    assert said.code == 2
    assert "cannot be written: No such file or directory." in said.err


def test_an_error_under_json_is_a_line_of_json(batchloom: Run, make_job: Run) -> None:
    said = batchloom("run", make_job(), "--text-column", "id", "--json")
    (line,) = said.out.splitlines()
    assert json.loads(line) | {"message": ""} == {"event": "error", "kind": "InputError", "message": "", "exit_code": 2}


def test_the_error_limit_has_an_exit_code_of_its_own(batchloom: Run, finished: Any, unfinished: Path) -> None:
    said = batchloom("run", finished.job, "--output", unfinished, "--set", "limits.max_error_rate=0.01")
    assert said.code == 3
    assert "limits.max_error_rate is 0.01. Finished parts are kept. " in said.err
    assert "To keep the error rows, raise the limit and run the same command again." in said.err


def test_a_result_with_errors_says_what_to_do_about_most_of_them(batchloom: Run, finished: Any) -> None:
    """A first job on news ended with 37 of 40 rows too long, exit code 0, and not a word about it."""
    cure = "run the same command with --retry-errors=too_long --set task_options.long_documents=chunk"
    said = batchloom("run", finished.job)
    assert said.code == 0
    assert "30 rows, 27 answered, 3 errors (1 empty_text, 1 null_text, 1 too_long)" in said.out
    assert f"too_long: {cure}" in said.out
    assert cure in finished.said.json[-1]["advice"]


def test_a_job_that_fails_on_its_way_has_exit_code_1(batchloom: Run, make_job: Run, monkeypatch: Any) -> None:
    def failing(*_: Any) -> None:
        raise JobError("The last replica died.")

    monkeypatch.setattr("batchloom.pipelines.run", failing, raising=False)
    said = batchloom("run", make_job())
    assert (said.code, said.err) == (1, "Error: The last replica died.\n")


def test_an_interrupt_says_that_the_job_can_go_on(batchloom: Run, make_job: Run, monkeypatch: Any) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchloom.pipelines.run", interrupted, raising=False)
    said = batchloom("run", make_job())
    assert said.code == 130
    assert "finished parts are kept and the same command goes on from there" in said.err


def test_what_nobody_expected_keeps_its_traceback(batchloom: Run, make_job: Run, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("batchloom.pipelines.run", broken, raising=False)
    with pytest.raises(ZeroDivisionError):
        batchloom("run", make_job())


@pytest.mark.parametrize(
    ("address", "url"),
    [("head", "http://head:8265"), ("head:80", "http://head:80"), ("http://head", "http://head:8265"),
     ("http://head:8299/", "http://head:8299/"), ("https://ray.example.com/a", "https://ray.example.com/a"),
     ("[::1]", "http://[::1]:8265"), ("10.0.0.7:8265", "http://10.0.0.7:8265")],
)  # fmt: skip
def test_the_address_of_a_dashboard_needs_neither_http_nor_port(address: str, url: str) -> None:
    """Ray took an address without http for a client's: 40 seconds of noise, then an RpcError."""
    assert url_of(address) == url


@pytest.mark.parametrize("address", ["", "http://", "head:port", "head:99999"])
@pytest.mark.parametrize("command", ["jobs", "logs", "attach", "stop"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(
    batchloom: Run, command: str, address: str
) -> None:
    said = batchloom(command, *(["job"] if command != "jobs" else []), "--address", address)
    assert said.code == 2
    assert said.err.startswith(f"Error: --address {address}: ")
    assert said.err.endswith("Write the dashboard's host and port, head:8265.\n")


def test_the_port_of_rays_client_is_no_dashboard(batchloom: Run) -> None:
    """Ray tried it for two minutes, with warnings of its own."""
    said = batchloom("jobs", "--address", "ray://head:10001")
    assert said.code == 2
    assert said.err.startswith(
        "Error: --address ray://head:10001: jobs go to the cluster's dashboard, by http or https."
    )
    assert "Write head:8265, or the port that" in said.err


def test_a_variable_that_is_not_set_is_refused_before_anything_is_asked(batchloom: Run, make_job: Run) -> None:
    said = batchloom("submit", make_job(), "--address", "localhost:8299", "--env", "LOOM_NOT_SET")
    assert said.code == 2
    assert said.err == (
        "Error: --env LOOM_NOT_SET: not set in this environment. Export it first: export LOOM_NOT_SET=...\n"
    )


@pytest.mark.parametrize("key", ["model", "output.path"])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_path_with_a_nul_byte(batchloom: Run, make_job: Run, command: str, key: str) -> None:
    said = batchloom(command, make_job(), "--set", f'{key}="/tmp/a\\0b"')
    assert said.code == 2
    assert said.err == f"Error: {key}: holds a NUL byte.\n"
