# The two main commands are `make demo` and `make test`; both first set up the environment.
# TORCH_INDEX: PyTorch's package index with CPU builds of torch, for Linux without CUDA. Its address
# is on pytorch.org under "Get Started", platform CPU. Without it, pip installs the CUDA build on
# Linux, which is several gigabytes.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
DEMO ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Three processes more than there are cores: half of the time, tests wait for brokers, deadlines and
# disks. The tests of a file run in the same process, because their shared fixtures take long to
# make. Files start in the order of their names: by default, those with the fewest tests would start
# last, and they take longest. If a process dies, the run ends: loadfile would wait endlessly for the
# tests that the process had left (xdist 3.8).
CORES := $(shell getconf _NPROCESSORS_ONLN)
TESTS := $(BIN)/python -m pytest -n $(shell echo $$(($(CORES) + 3))) --max-worker-restart=0
FILES := --dist loadfile --no-loadscope-reorder
# With RERUN=1, as in .ci/run, tests that failed run once more, one at a time, and their names are
# printed: a fault fails twice, but a test may fail once because the machine is busy. pytest's code
# is 1 if tests failed; after anything else, for example a process that died, nothing runs again.
RERUN ?=
SLOW ?= # options of pytest that choose among the slow tests
AGAIN := $(if $(RERUN),|| { test $$? = 1 && echo "UNSTABLE unless these fail again:" && $(BIN)/python -m pytest --last-failed -v -m 'slow or not slow'; },)
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-short test-unit test-slow test-all test-cluster test-docker test-openvino test-arm64 lint bench adversary docs wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create the virtual environment if it does not exist

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV); this happens once and takes a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(INDEX) torch
	@$(PIP) $(INDEX) -e '.[dev]'
	@touch $@

demo: $(READY) ## Run a federation on this machine (DEMO="--rounds 10" passes options)
	@$(BIN)/fedclip-edge demo $(DEMO)

test: $(READY) ## Run the tests
	@$(TESTS) $(FILES) $(AGAIN)

# For more versions of Python. Tests whose result does not depend on the version are marked
# one_python: those of documents and prose, and long ones such as the adversary's seeds, demos and
# fleets that are killed, exported networks. Tests that open SQLite files in their own process are
# not marked, because newer versions of Python warn about files that older ones accept.
SHORT := $(FILES) -m 'not slow and not cluster and not docker and not arm64 and not one_python'

test-short: $(READY) ## Run the tests except the longest (for another Python: PYTHON=... VENV=...)
	@$(TESTS) $(SHORT) $(AGAIN)

test-unit: $(READY) ## Run those of test-short that do not start whole fleets
	@$(TESTS) $(SHORT) --ignore=tests/end_to_end --ignore=tests/attacks $(AGAIN)

# Tests of one file may run in several processes: most of the time they wait. Each process reads all
# files that it is given, which takes ten seconds for all.
test-slow: $(READY) ## Run only the slow tests
	@$(TESTS) --dist loadgroup -m slow $(SLOW) $$(grep -rl 'mark\.slow' tests --include='test_*.py') $(AGAIN)

test-all: $(READY) ## Run the tests, including the slow ones
	@$(TESTS) $(FILES) -m 'not cluster and not docker and not arm64'

test-cluster: $(READY) ## Kill one of three RabbitMQ nodes (needs rabbitmq-server), and of two Ray nodes
	@test -x $(RABBITMQ) || { echo "test-cluster: $(RABBITMQ) is missing; install RabbitMQ: sudo apt-get install rabbitmq-server (Debian 12 has 3.10.8)" >&2; exit 1; }
	@$(BIN)/python -m pytest -m cluster tests/end_to_end/test_cluster.py tests/end_to_end/test_ray.py

# Not in .ci/run: it takes ten minutes or more, and downloads what pip needs.
test-docker: $(READY) ## Build the Dockerfile's images and finish a run in them (needs buildah, root)
	@$(BIN)/python -m pytest -rs -m docker tests/end_to_end/test_images.py

# Beside the environment and not in it: with OpenVINO installed, each agent of the other tests would
# try it at its first start.
OPENVINO := $(VENV)/openvino

test-openvino: $(READY) ## Install OpenVINO and run the tests that need it
	@test -d $(OPENVINO) || $(PIP) --no-deps --target $(OPENVINO) openvino
	@PYTHONPATH=$(OPENVINO) $(BIN)/python -m pytest tests/vision/test_openvino_session.py tests/vision/test_provider_choice.py

ARM64_ROOT ?= build/arm64

test-arm64: $(READY) ## Run a device's programs as arm64 binaries under qemu (needs root, mmdebstrap)
	@test -d $(ARM64_ROOT) || tests/arm64/make_root.sh $(ARM64_ROOT) $(BIN)/python
	@ARM64_ROOT=$(abspath $(ARM64_ROOT)) $(BIN)/python -m pytest -m arm64 tests/arm64

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## Measure start-up, the demo, rounds, memory, the journal, and the encoder at each precision
	@$(BIN)/python benchmarks/first_minute.py
	@$(BIN)/python benchmarks/rounds.py
	@$(BIN)/python benchmarks/footprint.py
	@$(BIN)/python benchmarks/journal.py
	@$(BIN)/python benchmarks/many_runs.py
	@$(BIN)/python benchmarks/operation.py
	@$(BIN)/python benchmarks/encoder.py

adversary: $(READY) ## Check the laws of a run with 100,000 seeds (about an hour on two cores)
	@$(BIN)/python benchmarks/adversary.py --seeds 100000

docs: $(READY) ## Build the manual into build/manual/ (Python 3.11 or newer)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY) ## Build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## Remove the virtual environment and all generated files
	rm -rf $(VENV) demo-run dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
