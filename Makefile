# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORLDS := $(VENV)/.worlds
OUT ?= runs/demo
SEEDS ?= 3

.PHONY: help setup demo demo-seeds test check docker-engine clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

setup: $(READY)  ## a virtual environment with what the project needs, pinned

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Kintsugi needs Python 3.11 or newer, found $$($(PYTHON) -V): call make with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,logic,math]"
	@touch $(READY)

# For the tests alone: where no wheels are cached ALFWorld's engine is compiled, which takes minutes. What is missing is noted,
# and told before the tests each time.
$(WORLDS): $(READY)
	@: > $(WORLDS).new
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gymnasium,mcp]" || \
		echo "NO BRIDGES: their packages could not be installed, so their tests are skipped (rm $(WORLDS) tries again)" >> $(WORLDS).new
	@if command -v g++ >/dev/null && command -v cmake >/dev/null; then \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[alfworld]" || \
			echo "NO ALFWORLD: its engine could not be installed, so its tests are skipped (rm $(WORLDS) tries again)" >> $(WORLDS).new; \
	else \
		echo "NO ALFWORLD: its engine needs g++ and cmake, which are not here, so its tests are skipped" >> $(WORLDS).new; \
	fi
	@mv $(WORLDS).new $(WORLDS)

demo: $(READY)  ## make a small model measurably better, and draw how
	@if [ -e $(OUT)/run.json ]; then $(BIN)/kintsugi train --resume $(OUT); else $(BIN)/kintsugi train demo --out $(OUT); fi

demo-seeds: $(READY)  ## the same with three seeds, and the table with intervals
	$(BIN)/python benchmarks/demo.py --seeds $(SEEDS)

test: $(WORLDS)  ## the tests
	@cat $(WORLDS)
	$(BIN)/python -m pytest

check: $(WORLDS)  ## what CI runs: ruff, pyright, import directions, tests
	@cat $(WORLDS)
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

docker-engine:  ## install Debian's Docker engine and start it, for the Docker sandbox
	.ci/docker-engine

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
