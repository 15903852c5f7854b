# Two commands for users: `make demo` and `make test`. Both do their own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
NPROC ?= 2
# Processes of the tests, each with threads of its own.
JOBS ?= 2

.PHONY: help demo demo-generative demo-vlm test install dev lint types unit wheel bench clean

help:
	@echo "make demo   train and align the embedded text-to-image model and the embedded vision-language model; prints the reports' paths"
	@echo "make test   style, types, tests, and the wheel installed elsewhere"
	@echo "make bench  benchmarks against plain reference loops"
	@echo "make clean  remove what the build made (runs/ stays)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mmrl needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/installed

install: $(VENV)/installed
dev: $(VENV)/installed-dev

demo: demo-generative demo-vlm
	@echo "reports: $(abspath $(DEMO)/generative/report.html)"
	@echo "         $(abspath $(DEMO)/vlm/report.html)"

demo-generative demo-vlm: demo-%: $(VENV)/installed
	@rm -rf $(DEMO)/$*
	$(BIN)/mmrl train quickstart/$* run.dir=$(DEMO)/$* --nproc $(NPROC)

test: $(VENV)/installed-dev lint types unit wheel

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	@rm -rf .links && mkdir -p .links/mmrl
	@ln -s $(CURDIR)/mmrl/* .links/mmrl/
	@for folder in generative vlm rewards data configs; do ln -s $(CURDIR)/$$folder .links/mmrl/$$folder; done
	cd .links && ../$(BIN)/mypy --config-file ../pyproject.toml -p mmrl

unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope

wheel: $(VENV)/installed-dev
	$(BIN)/python tests/smoke_wheel.py

bench: $(VENV)/installed-dev
	$(BIN)/python tests/bench/flow_grpo_iteration.py

clean:
	rm -rf build dist *.egg-info .links .mypy_cache .pytest_cache .ruff_cache
