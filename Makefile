# `make demo` and `make test` set up .venv by themselves and then do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types bench evidence-small evidence-gpu clean

demo: $(STAMP)
	$(BIN)/hf-curate demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/grace_over_forward.py
	$(BIN)/python benchmarks/demo_audit.py

# Both go on where they were stopped; what they find is recorded by `python -m evidence record`, see examples/evidence.
evidence-small: $(STAMP)
	PYTHONPATH=examples $(BIN)/python -m evidence run small --folder runs/evidence-small --workers 2
	PYTHONPATH=examples $(BIN)/python -m evidence record small --folder runs/evidence-small
	PYTHONPATH=examples $(BIN)/python -m evidence page

evidence-gpu: $(STAMP)
	PYTHONPATH=examples $(BIN)/python -m evidence run gpu --folder runs/evidence-gpu
	PYTHONPATH=examples $(BIN)/python -m evidence record gpu --folder runs/evidence-gpu

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis hf-curate-demo
