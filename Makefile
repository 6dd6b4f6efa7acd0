# polypod: the commands that people and CI use. `make` lists them.

PYTHON ?= python3
VENV ?= .venv
PHOTO ?= examples/$(shell ls examples 2>/dev/null | grep -E '\.(jpg|png|webp)$$' | head -n 1)
OUT ?= out
ARGS ?=

BIN := $(VENV)/bin
UPSTREAM_PYTHON ?= $(BIN)/python
SERVING := $(VENV)/.serving-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help run serve setup test upstream check format bench chaos lock clean

help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

run: $(SERVING) ## a photograph in, a 3D model in out/ (PHOTO=..., OUT=...)
	@$(BIN)/polypod run "$(PHOTO)" -o "$(OUT)" $(ARGS)

serve: $(SERVING) ## router and endpoints on 127.0.0.1:8000 until Ctrl-C (PORT=...)
	@exec $(BIN)/polypod up $(ARGS)

setup: $(SERVING) ## make the virtual environment (PYTHON=..., VENV=...)
	@echo "Ready: $(BIN)/polypod and $(BIN)/bentoml."

test: $(DEV) ## run every test (ARGS=... for pytest)
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

upstream: ## upstream's own code without a GPU (MODEL=..., POLYPOD_UPSTREAM=its checkout)
	@if [ -z "$(MODEL)" ]; then echo "Name the model: make upstream MODEL=sam3d"; exit 2; \
	elif [ -z "$$POLYPOD_UPSTREAM" ]; then \
	  echo "Skipped: set POLYPOD_UPSTREAM to a checkout of the source of $(MODEL)."; \
	elif ! $(UPSTREAM_PYTHON) -c "import torch, pytest"; then \
	  echo "Skipped: UPSTREAM_PYTHON=$(UPSTREAM_PYTHON) needs torch and pytest."; \
	else $(UPSTREAM_PYTHON) -m pytest --noconftest -rs $(ARGS) tests/upstream/test_$(MODEL).py; fi

check: $(DEV) ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(DEV) ## put the code into format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV) ## measure against other serving systems, side by side
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(DEV) ## kill processes at random moments, a hundred times
	@POLYPOD_CHAOS_ROUNDS=$${POLYPOD_CHAOS_ROUNDS:-100} $(BIN)/python -m pytest tests/chaos $(ARGS)

lock: $(SERVING) ## resolve requirements/*.in again, keeping what still fits
	@for name in serving cutout dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	    --no-emit-index-url --no-header \
	    $$([ $$name = serving ] || echo "-c requirements/serving.lock") \
	    $$([ $$name = dev ] && echo "--override requirements/dev.overrides") \
	    requirements/$$name.in --output-file requirements/$$name.lock || exit 1; \
	done

clean: ## remove the virtual environment and what was made
	@rm -rf .venv .venv3* .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(SERVING): requirements/serving.lock pyproject.toml
	@sh requirements/install.sh $(PYTHON) $(VENV) requirements/serving.lock
	@touch $@

$(DEV): $(SERVING) requirements/dev.lock
	@sh requirements/install.sh $(PYTHON) $(VENV) requirements/dev.lock
	@touch $@
