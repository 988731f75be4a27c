# Every target makes what it needs: `make demo` works on a machine with Python 3.11 and make alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
N ?= 300

.PHONY: demo test test-slow test-gpu test-faults check format bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --rows $(N)

# These start clusters and kill them, or watch the clock: they have the machine for themselves (test_visible.py: what it
# prints cannot be sent between processes). The others take a core each.
OF_ONE_RAY := $(addprefix tests/pipelines/test_,$(addsuffix .py,formats layout model_options output_formats permission \
	readers retry selection storage tables))
ALONE := tests/cluster tests/examples tests/faults tests/jobs/test_signals.py tests/jobs/test_startup.py \
	tests/jobs/terminal/test_visible.py \
	$(filter-out $(OF_ONE_RAY),$(wildcard tests/pipelines/test_*.py)) tests/resume tests/test_public_api.py
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

bench: $(VENV)/.installed
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
