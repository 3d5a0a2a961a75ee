PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
BIN   := $(VENV)/bin
STAMP := $(VENV)/.native
NATIVE := src/gossamer/kernels/cpu

.PHONY: demo test quick check accuracy benchmarks format clean
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
	$(BIN)/python -m pytest --doctest-modules src/gossamer -q --ignore=src/gossamer/kernels/gpu/device

accuracy: $(STAMP)      ## the accuracy tables of docs/results, about 20 minutes on two cores
	for name in m1d-baselines m1d-sweeps lm-baselines; do \
		$(BIN)/gossamer study studies/$$name.yaml --workers 2 --tables docs/results || exit 1; done

benchmarks: $(STAMP)    ## sparse layers against dense ones, on a machine that does nothing else; JSON in runs/benchmarks
	for name in sparse_linear sparse_conv sparse_training hybrid sparse_memory rewiring_share roofline \
			transforms offset_linear offset_conv doubly_sparse block_sparse nm_masks; do \
		$(BIN)/python benchmarks/$$name.py --json runs/benchmarks/$$name.json || exit 1; done

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[test]"
	touch $@

# An edit of the kernels compiles them again; without a compiler the reference serves.
$(STAMP): $(VENV)/.installed $(NATIVE)/build.py $(wildcard $(NATIVE)/native/*)
	-$(BIN)/python -m gossamer.kernels.cpu.build
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info $(NATIVE)/_native.so runs
