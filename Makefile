# make demo, make test: set everything up in .venv and run.  make check, make notebooks: what else must hold before a change
# lands.  make matrix: the oldest and the newest releases that the metadata promises.  make fuzz: an hour of random inputs,
# SECONDS=600 for less.  make bench: all figures of the pages.  make model: the embedded models, from nothing
# (training/README.md).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Editable by a plain path, which type checkers can follow.
# One thread a process: small networks are many times slower when threads outnumber cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check fuzz oldest newest matrix notebooks bench model format clean

# What differs between releases: loading, schedulers, pipelines, files, the binding.
VARIES := $(addprefix tests/test_,models.py core.py sampler.py session.py tiny.py files.py)
# What these tests need beside the wheel.
TESTED := setuptools scipy pytest pytest-xdist hypothesis torchsde peft sentencepiece
# The release of torch that constraints-oldest.txt names is to be had with CUDA only, 7 GB on the disk; another can be named.
OLDEST_TORCH ?= $(shell sed -n 's/^torch==//p' constraints-oldest.txt)
OLDEST_PYTHON ?= $(PYTHON)
NEWEST_PYTHON ?= $(shell for one in python3.14 python3.13 python3.12 $(PYTHON); do $$one -c "" 2>/dev/null && echo $$one && break; done)

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*.c csrc/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch setuptools numpy
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation --config-settings editable_mode=compat -e ".[test,check]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/nrinv demo --out demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist worksteal

# The wheel, as users get it, in environments of their own.
build/matrix/wheel: $(VENV)/installed $(wildcard nrinv/*.py nrinv/models/*.py)
	rm -rf $@
	$(BIN)/python -m build -q --wheel --no-isolation --outdir $@

oldest: build/matrix/wheel
	sed 's/^torch==.*/torch==$(OLDEST_TORCH)/' constraints-oldest.txt > build/matrix/oldest.txt
	test -x build/matrix/oldest/bin/python || $(OLDEST_PYTHON) -m venv build/matrix/oldest
	build/matrix/oldest/bin/pip install -q -c build/matrix/oldest.txt $(TESTED) "$$(echo $(CURDIR)/build/matrix/wheel/*.whl)[cli]"
	build/matrix/oldest/bin/pytest -q -n auto --dist worksteal $(VARIES)

newest: build/matrix/wheel
	test -x build/matrix/newest/bin/python || $(NEWEST_PYTHON) -m venv build/matrix/newest
	build/matrix/newest/bin/pip install -q --upgrade $(TESTED) "$$(echo $(CURDIR)/build/matrix/wheel/*.whl)[cli]"
	build/matrix/newest/bin/pytest -q -n auto --dist worksteal $(VARIES)

matrix: oldest newest

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
