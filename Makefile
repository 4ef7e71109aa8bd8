# Two commands do everything:  make train   make test
PY     ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OUT    ?= runs/main

.PHONY: train test lab check docs bench clean
.DELETE_ON_ERROR:

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

train: $(READY)            ## draw streets, train, evaluate, write $(OUT)/report.html
	$(BIN)/pinmem train --out $(OUT)

test: $(READY) check       ## in-step check, every notebook, pytest
	$(BIN)/python -m pytest -q tests

lab: $(READY)              ## open the notebooks
	$(BIN)/jupyter lab nbs

check: $(READY)            ## modules and README are what the notebooks generate
	$(BIN)/python tests/in_step.py

docs: $(READY)             ## generate pinmem/*.py and README.md from the notebooks
	$(BIN)/python tests/in_step.py --write

clean:
	rm -rf $(VENV) build dist *.egg-info
