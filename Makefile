# `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_COMPILE := $(BIN)/uv pip compile pyproject.toml --generate-hashes --no-annotate --no-header -q --python-version 3.11

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.done ## Create .venv with everything locked in requirements/dev.txt
$(VENV)/.done: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: lock
lock: setup ## Recompute requirements/*.txt from pyproject.toml
	$(UV_COMPILE) --all-extras --group dev -o requirements/dev.txt
	$(UV_COMPILE) --extra operator -o requirements/operator.txt
	$(UV_COMPILE) --extra sidecar -o requirements/sidecar.txt
	$(UV_COMPILE) --extra simulator -o requirements/simulator.txt

.PHONY: format
format: setup ## Format and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: check
check: setup ## Formatter, linter, layers, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.PHONY: unit
unit: setup ## Pure tests (seconds)
	$(BIN)/python -m pytest tests/unit -q

.PHONY: bench-planner
bench-planner: setup ## Plan the whole catalogue and print configurations a second
	$(BIN)/python benchmarks/bench_planner.py

.PHONY: bench-tuning
bench-tuning: setup ## Compare scaling policies on public traces, defaults and tuned (build/bench/tuning.json)
	$(BIN)/python benchmarks/bench_tuning.py

.PHONY: bench-sidecar
bench-sidecar: setup ## Measure the sidecar beside nginx, Starlette + httpx and LiteLLM (build/bench/sidecar.json)
	$(BIN)/python benchmarks/bench_sidecar.py $(ARGS)

.PHONY: bench-simulator
bench-simulator: setup ## Print simulated seconds a second and what a streamed token of the simulated server costs
	$(BIN)/python benchmarks/bench_simulator.py $(ARGS)

.PHONY: crd
crd: setup ## Regenerate crds/ (and the chart's copy) from the pydantic models
	$(BIN)/trimtab crd > crds/llmdeployments.trimtab.dev.yaml
	@if [ -d charts/trimtab ]; then mkdir -p charts/trimtab/crds && cp crds/llmdeployments.trimtab.dev.yaml charts/trimtab/crds/; fi
	@if [ -f deploy/trimtab.yaml ]; then $(MAKE) -s manifests; fi

.PHONY: manifests
manifests: ## Regenerate deploy/trimtab.yaml from the chart
	$(PYTHON) deploy/generate.py > deploy/trimtab.yaml.new
	mv deploy/trimtab.yaml.new deploy/trimtab.yaml

# The three levels run one after the other: the machine that runs them may have two cores.
.PHONY: test
test: check ## Everything: checks, then pure, API-server and node tests (installs what it needs)
	$(BIN)/python -m pytest tests/unit tests/api tests/e2e -q -p no:cacheprovider

.PHONY: api-test
api-test: setup ## Tests on a real API server (minutes)
	$(BIN)/python -m pytest tests/api -q

.PHONY: e2e
e2e: setup ## Tests on a real node with pods (minutes, needs root)
	$(BIN)/python -m pytest tests/e2e -q

.PHONY: clean
clean: ## Remove what was built in the checkout
	rm -rf build dist .venv

.PHONY: demo
demo: setup ## Show Trimtab at work on a local cluster (needs root; leaves the cluster up)
	$(BIN)/python -m demo run

.PHONY: demo-clean
demo-clean: ## Remove the demo's cluster and every trace of it
	$(PYTHON) -m devcluster down
