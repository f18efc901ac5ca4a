# Two commands do everything: `make demo` and `make test`. Each sets up .venv by itself, with Python 3.11 to 3.13.
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,$(if $(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo ok),$(p))))
VENV := .venv
BIN := $(VENV)/bin
# The home `make ui` opens: the demo's once there is one, else the small sample that lies in the repository.
RECSYS_HOME ?= $(if $(wildcard data/demo/settings.yaml),data/demo,data/sample)
PORT ?= 3000

.PHONY: help demo test ui lint clean

help:
	@echo "make demo   simulate a shop, run the whole graph on it, print what came of it (data/demo)"
	@echo "make test   lint, types and all tests"
	@echo "make ui     Dagster's UI on http://127.0.0.1:$(PORT) for RECSYS_HOME=$(RECSYS_HOME)"
	@echo "make lint   ruff and mypy only"
	@echo "make clean  remove the virtual environment and the demo"

$(BIN)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "$(PYTHON) is not Python 3.11 to 3.13"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) (about two minutes the first time)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audience,data,dev,mysql,postgresql]'
	@touch $@

demo: $(BIN)/.installed
	@$(BIN)/recsys demo

test: lint
	$(BIN)/python -m pytest

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(BIN)/.installed
	@RECSYS_HOME=$(RECSYS_HOME) $(BIN)/recsys ui --port $(PORT)

clean:
	rm -rf $(VENV) data/demo
