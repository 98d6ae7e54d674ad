# make help lists the targets. Everything runs in .venv, which the first target that needs it makes.
.DEFAULT_GOAL := help
VENV := .venv
READY := $(VENV)/.ready
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Threads that spin while they wait are ruinous on a shared machine.
export OMP_WAIT_POLICY ?= passive

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## make .venv and install everything, pinned

$(READY): requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

repro: $(READY) ## run the whole graph on the embedded data, then print the results
	@dvc repro
	@plumbline results

check: $(READY) ## lint, format and types
	@ruff check .
	@ruff format --check --quiet .
	@mypy

test: $(READY) ## all tests, the graph at smoke size included, a file to a core
	@pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: $(READY) ## each hot path beside its peer, as a ratio
	@python benchmarks/run.py

ui: $(READY) ## compare runs in the browser (MLflow)
	@plumbline ui

gate: $(READY) ## refuse worse, missing or NaN metrics
	@plumbline gate

real: $(READY) ## the same graph on the real captures in $$PLUMBLINE_REAL_DATA: reports/real.html
	@plumbline run --params params.real.yaml --name real

release: $(READY) check test gate ## check, test, gate, and refuse results that the code no longer gives
	@plumbline stale

.PHONY: help setup repro check test bench ui gate real release
