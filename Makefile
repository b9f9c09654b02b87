# make demo    the default run: SupSup on permuted digits, in about a minute
# make test    the tests, on the processor
# make lint    the linter
# Each makes .venv first if it is missing or requirements*.txt changed; only Python >= 3.10 is needed.

PYTHON ?= python3
RUN := .venv/.run-requirements
DEV := .venv/.dev-requirements

.PHONY: demo test lint install

demo: $(RUN)
	.venv/bin/python main.py

test: $(DEV)
	.venv/bin/python -m pytest

lint: $(DEV)
	.venv/bin/ruff check

install: $(DEV)

$(RUN): requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUN)
	.venv/bin/pip install -r requirements-dev.txt
	@touch $@
