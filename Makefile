# make demo, make test: set everything up in .venv and run.  make check, make notebooks: what else must hold before a change
# lands.  make fuzz: an hour of random inputs, SECONDS=600 for less.  make bench: all figures of the pages.  make model: the
# embedded models, from nothing (training/README.md).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Editable by a plain path, which type checkers can follow.
# One thread a process: small networks are many times slower when threads outnumber cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check fuzz notebooks bench model format clean

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*.c csrc/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch setuptools numpy
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation --config-settings editable_mode=compat -e ".[test,check]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/nrinv demo --out demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist worksteal

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python benchmarks/report.py --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/mypy
	$(BIN)/stubtest --mypy-config-file pyproject.toml nrinv._C
	$(BIN)/pytest -q tests/typing
	$(BIN)/clang-format --dry-run --Werror csrc/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch]
	$(MAKE) -C tests/c sanitize valgrind BUILD=$(CURDIR)/build/c
	$(MAKE) -C tests/fuzz run BUILD=$(CURDIR)/build/fuzz SECONDS=60
	$(BIN)/python tests/sanitize.py
	$(BIN)/python -m build -q --wheel --no-isolation --outdir build/wheel
	$(BIN)/abi3audit --strict build/wheel/nrinv-*-cp311-abi3-*.whl

# Half of the time for the core, half for what is given from Python.
SECONDS ?= 3600
fuzz: $(VENV)/installed
	$(MAKE) -C tests/fuzz run BUILD=$(CURDIR)/build/fuzz SECONDS=$$(( $(SECONDS) / 2 ))
	$(BIN)/python tests/fuzz/cases.py all $$(( $(SECONDS) / 2 ))

notebooks: $(VENV)/installed
	$(BIN)/pytest -n auto --nbmake --nbmake-timeout=600 notebooks

bench: $(VENV)/installed
	$(BIN)/python benchmarks/overhead.py --check
	$(BIN)/python benchmarks/solver.py --check
	$(BIN)/python benchmarks/pipelines.py --check
	$(BIN)/python benchmarks/interpolate.py --check
	$(BIN)/python benchmarks/correction.py
	$(BIN)/python benchmarks/rare.py --check
	$(BIN)/python benchmarks/report.py

model: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt ".[train]"
	$(BIN)/python training/data.py
	$(BIN)/python training/train_vae.py
	$(BIN)/python training/train_base.py
	$(BIN)/python training/distill.py
	$(BIN)/python training/train_scorer.py
	$(BIN)/python training/export.py
	$(BIN)/python training/evaluate.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch]

clean:
	rm -rf build dist *.egg-info nrinv/*.so demo
