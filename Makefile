# Every target makes what it needs: `make demo` works on a machine with Python 3.11 and make alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
N ?= 300

.PHONY: demo test test-slow test-gpu test-faults check format bench bench-gpu bench-table clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --rows $(N)

# These start clusters and kill them, or watch the clock: they have the machine for themselves (test_visible.py: what it
# prints cannot be sent between processes). The others take a core each.
ALONE := tests/cluster tests/examples tests/faults tests/jobs/test_signals.py tests/jobs/test_startup.py \
	tests/jobs/terminal/test_visible.py $(addprefix tests/pipelines/test_,cluster.py faults_of_replicas.py waiting.py) \
	tests/resume tests/test_public_api.py
# Each process would compile all modules.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 15 $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest --durations 30 $(ALONE)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

# OpenStack Swift, the real S3 server of these tests, has an environment of its own: its packages are not ours.
build/swift/.installed: tests/faults/requirements.txt
	test -x build/swift/bin/python || $(PYTHON) -m venv build/swift
	build/swift/bin/python -m pip install --quiet --requirement tests/faults/requirements.txt
	touch $@

test-faults: $(VENV)/.installed build/swift/.installed
	$(BIN)/python -m pytest -m faults tests/faults

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What benchmarks/results has of processors, under half an hour of two cores; docs/benchmarks.md has the longer ones.
BOTH := --dtypes bfloat16 int8
BENCH := "engine --workload beam --documents 12 $(BOTH)" "engine --workload greedy --documents 24 $(BOTH)" \
	"engine --workload greedy-varying --documents 16 $(BOTH)" "engine --workload bloom --documents 8 $(BOTH)" \
	"pipeline --case short --rounds 1" "pipeline --case demo --rounds 1 --rows 400 --dtypes float32 bfloat16" \
	"single_pass --texts 6 $(BOTH)" "scoring --pairs 200 --rounds 2" shapes agreement cache_waste metrics
BENCH_GPU := gpu gpu_attention "single_pass --texts 512" "scoring --dtype bfloat16"

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

bench: $(VENV)/.bench
	for one in $(BENCH); do echo "== $$one"; $(BIN)/python -m benchmarks.$$one || exit 1; done

bench-gpu: $(VENV)/.bench
	for one in $(BENCH_GPU); do echo "== $$one"; $(BIN)/python -m benchmarks.$$one || exit 1; done

bench-table: $(VENV)/.installed
	$(BIN)/python -m benchmarks.table
	$(BIN)/python -m benchmarks.plot

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
