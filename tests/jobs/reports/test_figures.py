"""The figures of a run, from its manifest's times."""

from batchloom.jobs.reports.figures import Figures

TIMING = {
    "wall_seconds": 120.0, "startup_seconds": 20.0, "units_computed": 5, "units_resumed": 5, "rows_computed": 500,
    "engine_prompt_tokens": 1000.0, "engine_padded_tokens": 1100.0, "num_replicas": 1, "tokenize_seconds": 300.0,
    "replicas_loading_seconds": 20.0, "replicas_computing_seconds": 50.0, "replicas_waiting_seconds": 30.0,
    "replicas_overhead_seconds": 0.1,
}  # fmt: skip
TOTALS = {"rows": 1000, "truncated_tokens": 0}


def test_a_resumed_run_has_rows_a_second_of_its_own() -> None:
    assert Figures(TIMING, TOTALS).rows_per_second == 5.0
    assert Figures({**TIMING, "rows_computed": 0}, TOTALS).rows_per_second is None
    of_before = {name: value for name, value in TIMING.items() if name != "rows_computed"}
    assert Figures(of_before, TOTALS).rows_per_second is None
    assert Figures({**of_before, "units_resumed": 0}, TOTALS).rows_per_second == 10.0


def test_what_replicas_did_is_told_and_a_hint_only_where_they_waited() -> None:
    words = Figures(TIMING, TOTALS).words()
    assert words["Replicas"] == "computed 50%, waited for units 30%, loaded 20%"
    assert words["Hint"].startswith("starved by tokenization: replicas waited 37% of their time for units; give Ray")
    assert "Hint" not in Figures({**TIMING, "replicas_computing_seconds": 500.0}, TOTALS).words()
    slow = {**TIMING, "replicas_overhead_seconds": 25.0}
    assert Figures(slow, TOTALS).words()["Replicas"].endswith(", handed over 20%")
    of_before = {name: value for name, value in TIMING.items() if not name.startswith("replicas_")}
    assert not {"Replicas", "Hint"} & set(Figures(of_before, TOTALS).words())
