# Two commands for a fresh machine: `make report` and `make test`. Everything lands in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: report test lint docs claims clean
.DEFAULT_GOAL := report

# torch first and alone: an unpinned torch brings gigabytes of CUDA libraries
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[examples]'
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

$(VENV)/documented: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

report: $(VENV)/installed
	$(BIN)/frechet report --out report

test: $(VENV)/tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/documented
	$(BIN)/mkdocs build --strict

claims: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python claims/claim.py

clean:
	rm -rf $(VENV) report site
