# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow test-thorough studies-smoke lint bench clean

demo: .venv/installed
	$(BIN)/repairlab demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow and not thorough and not gpu"

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m "slow and not gpu"

test-thorough: .venv/installed-dev
	$(BIN)/python docs/networks.py --all --fresh
	$(BIN)/python -m pytest -m "thorough and not gpu"

studies-smoke: .venv/installed
	for study in $$($(BIN)/repairlab studies --size smoke); do $(BIN)/repairlab run $$study --size smoke || exit 1; done

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python benchmarks/pipeline.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "repairlab needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
