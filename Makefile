# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo up down status test test-slow test-thorough check-cluster studies-smoke notebook lint docs bench bench-scaling bench-growth bench-profile bench-gpu clean

demo: .venv/installed
	$(BIN)/repairlab demo

# A small cluster on this machine: Prefect on PostgreSQL, S3, Dask, and a worker for what is scheduled.
up: .venv/installed-stack
	@$(BIN)/python -m infra.stack up

down: .venv/installed-stack
	@$(BIN)/python -m infra.stack down

status: .venv/installed-stack
	@$(BIN)/python -m infra.stack status

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow and not thorough and not gpu"

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not gpu"

test-thorough: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[zoo]'
	$(BIN)/python docs/networks.py --all --fresh
	$(BIN)/python docs/networks.py --zoo --fresh
	$(BIN)/python -m pytest -m "thorough and not gpu"

check-cluster: .venv/installed-dev
	$(BIN)/python .ci/cluster.py

studies-smoke: .venv/installed
	for study in $$($(BIN)/repairlab studies --size smoke); do $(BIN)/repairlab run $$study --size smoke || exit 1; done

notebook: .venv/installed-dev
	$(BIN)/repairlab run docs/factors.toml
	$(BIN)/python docs/analysis.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/installed-dev
	$(BIN)/python -W error -m pdoc --output-directory build/reference flows.results tasks.science tasks.tables.schema infra.tables infra.storage infra.weights

bench: .venv/installed-dev
	$(BIN)/python benchmarks/pipeline.py --write

bench-scaling: .venv/installed-dev
	$(BIN)/python benchmarks/scaling.py --write

bench-growth: .venv/installed-dev
	$(BIN)/python benchmarks/growth.py

bench-gpu: .venv/installed-dev
	$(BIN)/python benchmarks/gpu.py --processes 4

bench-profile: .venv/installed-dev
	$(BIN)/python benchmarks/profile_study.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "repairlab needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-stack: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[stack]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed-stack $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
