# The two commands of this project are `make demo` and `make test`; both set up what they need.
# TORCH_INDEX: an index of CPU builds of torch, for Linux without CUDA. PyTorch publishes one; its
# address is on pytorch.org under "Get Started", platform CPU. Without it pip takes what its own
# index offers, which on Linux is the CUDA build of several gigabytes.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
DEMO ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A process for each core; a file's tests stay in one, for what they share takes long to make. One
# that dies ends them all: loadfile would wait for ever for what it had yet to do (xdist 3.8).
TESTS := $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart=0
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-short test-slow test-all test-cluster lint bench adversary docs wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment, if it is not there

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(INDEX) torch
	@$(PIP) $(INDEX) -e '.[dev]'
	@touch $@

demo: $(READY) ## Run a federation on this machine (DEMO="--rounds 10" passes options)
	@$(BIN)/fedclip-edge demo $(DEMO)

test: $(READY) ## Run the tests
	@$(TESTS)

# For one Python more, in a third of the time. What takes longest and shows the same on every Python is
# marked one_python: the adversary's seeds, demos and fleets that are killed, exported networks. All that
# open SQLite files in the tests' own process are in: a later Python warns of what was let pass before.
test-short: $(READY) ## Run the tests but the longest (for another Python: PYTHON=... VENV=...)
	@$(TESTS) -m 'not slow and not cluster and not one_python'

test-slow: $(READY) ## Run the slow tests alone
	@$(TESTS) -m slow

test-all: $(READY) ## Run the tests, the slow ones too
	@$(TESTS) -m 'not cluster'

test-cluster: $(READY) ## Run a fleet over three RabbitMQ nodes and kill one (needs rabbitmq-server)
	@test -x $(RABBITMQ) || { echo "test-cluster: $(RABBITMQ) is missing; install RabbitMQ: sudo apt-get install rabbitmq-server (Debian 12 has 3.10.8)" >&2; exit 1; }
	@$(BIN)/python -m pytest -m cluster tests/end_to_end/test_cluster.py

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## Measure start-up, the demo, rounds, memory, and the encoder at each precision
	@$(BIN)/python benchmarks/first_minute.py
	@$(BIN)/python benchmarks/rounds.py
	@$(BIN)/python benchmarks/footprint.py
	@$(BIN)/python benchmarks/encoder.py

adversary: $(READY) ## Try the laws of a run for 100,000 seeds (about an hour on two cores)
	@$(BIN)/python benchmarks/adversary.py --seeds 100000

docs: $(READY) ## Build the manual into build/manual/ (Python 3.11 or newer)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: $(READY) ## Build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## Remove the virtual environment and everything made
	rm -rf $(VENV) demo-run dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
