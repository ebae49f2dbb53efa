# The commands of the README. `make demo` and `make test` set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUDGET ?= 6min
OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all gpu-check lint format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.installed ## Make the virtual environment with the pinned dependencies

# The constraints pin what was tested; pyproject.toml says what should work.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## Vocabulary, pretraining, fine-tuning, report: offline, on embedded data
	$(BIN)/python -m demo --budget $(BUDGET) --out $(OUT)

test: setup ## The tests, in under 12 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: setup ## The tests with the slow ones, and shapes checked at run time
	$(BIN)/python -m pytest -n 2
	$(BIN)/python -m pytest -n 2 -m 'not (slow or compile or errors)' tests/kernels tests/bert \
		--jaxtyping-packages=kernels,bert,beartype.beartype

# Needs an NVIDIA or AMD GPU with its driver; constraints.txt's torch comes from PyPI, whose Linux
# wheel is the CUDA build. (For ROCm install PyTorch's own wheel into $(VENV) after `make setup`.)
# DRY=1 checks on a CPU what can be checked there: that the tests and the benchmark work. The
# sanitizer looks for memory that isn't ours and for races between threads; it slows a kernel many
# times over, so it gets the shorter sequences of the smaller model.
gpu-check: setup ## The kernels on a GPU: native tests, then times in runs/gpu (DRY=1: no GPU)
	mkdir -p runs/gpu
ifdef DRY
	@echo "DRY=1: no GPU is used. The GPU's tests are skipped or rehearsed, and no kernel is timed."
	$(BIN)/python -m pytest tests/kernels/triton/test_*on_gpu.py
	$(BIN)/python -m benchmarks.kernel_speed --dry --rounds 3 --json runs/gpu/dry.json
else
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "gpu-check: torch " + torch.__version__ + " finds no GPU; DRY=1 checks without one")'
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu tests
	@if command -v compute-sanitizer >/dev/null; then \
		for tool in memcheck racecheck; do \
			TRITON_INTERPRET=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
				compute-sanitizer --tool $$tool --error-exitcode 1 \
				$(BIN)/python -m pytest -m gpu tests/kernels/triton -k 'parity and base and 128' \
				|| exit 1; \
		done; \
	else echo "compute-sanitizer: not installed, left out"; fi
	TRITON_INTERPRET=0 $(BIN)/python -m benchmarks.kernel_speed --json runs/gpu/kernel_speed.json
endif

lint: setup ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup ## Let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and the caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
