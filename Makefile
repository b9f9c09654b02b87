# make demo        the default run: SupSup on permuted digits, in about a minute
# make notebook    opens mnist.ipynb, with what it and the reports of experiments need
# make test        the tests, on the processor
# make test-oldest the tests, with the oldest versions that requirements.txt allows, in .venv-oldest
# make lint        the linter, and the types
# Each makes .venv first if it is missing or requirements*.txt changed; only Python >= 3.10 is needed.
# With TORCH=cpu (or cu128, ...), a new .venv gets that build from torch's own index; cpu has no CUDA libraries.

PYTHON ?= python3
TORCH ?=
OLDEST := .venv-oldest/.dev-requirements
RUN := .venv/.run-requirements
NOTEBOOK := .venv/.notebook-requirements
DEV := .venv/.dev-requirements

.PHONY: demo notebook test test-oldest lint install

demo: $(RUN)
	.venv/bin/python main.py

notebook: $(NOTEBOOK)
	.venv/bin/jupyter lab mnist.ipynb

# The tests run in two processes, which otherwise fight over the cores.
test: export OMP_NUM_THREADS = 1
test: $(DEV)
	.venv/bin/python -m pytest

test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest

lint: $(DEV)
	.venv/bin/ruff check
	.venv/bin/mypy

install: $(DEV)

$(RUN): requirements.txt
	$(PYTHON) -m venv .venv
ifneq ($(TORCH),)
	.venv/bin/pip install --index-url https://download.pytorch.org/whl/$(TORCH) $$(grep -oE '^torch[^ ]*' requirements.txt)
endif
	.venv/bin/pip install -r requirements.txt
	@touch $@

$(NOTEBOOK): requirements-notebook.txt $(RUN)
	.venv/bin/pip install -r requirements-notebook.txt
	@touch $@

$(DEV): requirements-dev.txt requirements-ray.txt requirements-slurm.txt $(NOTEBOOK)
	.venv/bin/pip install -r requirements-dev.txt
	@touch $@

# What has a lower bound gets it, with the bug fixes of that version: torch>=2.11 is torch==2.11.*
$(OLDEST): requirements.txt requirements-notebook.txt requirements-ray.txt requirements-slurm.txt requirements-dev.txt
	$(PYTHON) -m venv .venv-oldest
	sed -n 's/^\([a-z-]*\)>=\([0-9.]*\).*/\1==\2.*/p' requirements.txt > .venv-oldest/oldest.txt
	.venv-oldest/bin/pip install -r requirements-dev.txt -c .venv-oldest/oldest.txt
	@touch $@
