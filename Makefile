# Two commands are enough: `make demo` and `make test`.
# Another Python: make PYTHON=python3.12 demo.  Another environment: make VENV=/some/folder test.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: demo test lint bench clean help

demo: $(VENV)/.demo ## pictures from prompts in four languages, in out/
	$(BIN)/kotoe generate "a cat on a blue background" "青い背景に猫" "蓝色背景上的猫" "파란 배경의 고양이" \
	    "a strawberry on a white background" "黄色い背景にスイカ" "绿色背景上的熊猫" "하늘색 배경의 돌고래" \
	    "a rocket on a black background" "ピンクの背景にタコ" "橙色背景上的自行车" "보라색 배경의 기타" --seed 7 --out out
	@echo "Look at out/grid.png"

test: $(VENV)/.test lint ## everything that CI checks
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test ## cold start against a minimal diffusers script, the same folder
	$(BIN)/python benchmarks/cold_start.py --card benchmarks/cold_start.md

clean: ## remove the environment, pictures and caches; runs/ stays
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

help: ## this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /	/' | expand -t 8

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Kotoe needs Python 3.11 or newer, and found none. Debian: apt install python3-venv;" \
	    "macOS: brew install python. Or name it: make PYTHON=/path/to/python demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python has no venv. Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
