PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick check accuracy format clean
demo: $(STAMP)          ## train dense, SMALL, static, SET, RigL and rewire; print one table
	$(BIN)/gossamer demo

test: $(STAMP)          ## the whole suite
	$(BIN)/python -m pytest -n auto --dist worksteal

quick: $(STAMP)         ## the suite without the slow tests
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

check: $(STAMP)         ## format, lint, types, doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules src/gossamer -q

accuracy: $(STAMP)      ## the accuracy tables of docs/results, about 20 minutes on two cores
	for name in m1d-baselines m1d-sweeps lm-baselines; do \
		$(BIN)/gossamer study studies/$$name.yaml --workers 2 --tables docs/results || exit 1; done

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info runs
