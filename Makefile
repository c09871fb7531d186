# `make demo` and `make test` set up .venv by themselves and then do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types bench evidence-small evidence-gpu clean

demo: $(STAMP)
	$(BIN)/hf-curate demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

BENCHMARKS := start_up grace_over_forward grace_over_plain score_end_to_end rollouts_over_generate cost_curves

# Under ten minutes on two idle cores; select_large alone has a table of 10,000,000 rows. On a GPU: benchmarks/gpu.py.
bench: $(STAMP)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -W ignore benchmarks/$$name.py; done
	$(BIN)/python benchmarks/cost_curves.py --plot
	$(BIN)/python benchmarks/table.py --write
	$(BIN)/python benchmarks/select_large.py

# Both go on where they were stopped; what they find is recorded by `python -m evidence record`, see examples/evidence.
evidence-small: $(STAMP)
	PYTHONPATH=examples $(BIN)/python -m evidence run small --folder runs/evidence-small --workers 2
	PYTHONPATH=examples $(BIN)/python -m evidence run small --folder runs/evidence-small --workers 2 --further
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
