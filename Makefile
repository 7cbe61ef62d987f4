# `make train` and `make test` set up everything, once; nothing else needs to be installed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test check gpu help-pages parity clean

train: .venv/.installed
	$(BIN)/gptlit fit --config small.yaml $(ARGS)

# one process per core; the tests of a file run in the same process, since they share runs
test: check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# tests/gpu and every GPU benchmark within 8 minutes, and a table of the results; in .venv if there is
# one, else in PYTHON's own environment, where gptlit need not be installed
gpu:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_all.py $(ARGS)

# what `gptlit VERB --help` prints of the options, after one was added or reworded
help-pages: .venv/.installed-dev
	$(BIN)/python -m tests.cli.help_options

# compares with Hugging Face's transformers, in an environment of its own: installed next to
# Lightning, transformers would slow every command
parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest -W default tests/parity $(ARGS)

clean:
	rm -rf .venv .venv-parity build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gptlit needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

.venv-parity/.installed: constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		torch numpy tiktoken rustbpe safetensors transformers==5.23.0 pytest pytest-timeout hypothesis tokenizers \
		gguf==0.19.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 peft==0.21.2 trl==1.16.0
	# compiled for some minutes; without a compiler, its tests are skipped
	-.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
	@touch $@
