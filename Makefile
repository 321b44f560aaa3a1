# Two commands from a fresh clone, with Python 3.11 or later and make:
#   make demo   the main job: ingest samples/, ask two questions, evaluate
#   make test   everything that .ci/run runs

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# pip compiles what it installs, but not what stays editable; and Python may have been told to keep no bytecode
COMPILE := $(BIN)/python -m compileall -q ragctl tests
SAMPLES := configs/samples.yaml

.PHONY: demo test lint types tests benchmarks clean

demo: .venv/demo-installed
	$(BIN)/ragctl create-index $(SAMPLES)
	$(BIN)/ragctl ingest $(SAMPLES)
	$(BIN)/ragctl query $(SAMPLES) "How much cash did Quillmere hand over for Skerry Acoustics?"
	$(BIN)/ragctl query $(SAMPLES) "What is the most that a night in a hotel may cost?" --filter '{"year": 2021}'
	$(BIN)/ragctl eval $(SAMPLES)

test: lint types tests

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev-installed
	$(BIN)/mypy

tests: .venv/dev-installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile

.venv/demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt --editable ".[eval]"
	$(COMPILE)
	touch $@

.venv/dev-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	$(COMPILE)
	touch $@ .venv/demo-installed

clean:
	rm -rf .venv .ragctl runs
