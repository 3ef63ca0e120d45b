# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# Two files of tests side by side, of one thread each; those of a file share what they make. In their order, in
# which the long ones come first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slurm test-all lint clean

demo: $(VENV)/installed
	test -e $(DEMO)/study.toml || $(BIN)/hpcenc demo $(DEMO)
	$(BIN)/hpcenc submit $(DEMO)/study.toml --models all

test: $(VENV)/installed-test lint
	$(PYTEST)

SLURM := slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins

test-slurm: $(VENV)/installed-test
	@command -v slurmctld > /dev/null || test -x /usr/sbin/slurmctld || \
	{ test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(SLURM); } || \
	{ echo "SLURM is needed, as ordinary programs; Debian's packages: $(SLURM)"; exit 1; }
	HPCENC_NEEDS_SLURM=1 $(BIN)/pytest -m "slurm and not slow" tests/slurm

test-all: $(VENV)/installed-test lint
	$(PYTEST) -m "not gpu and not slurm"
	$(BIN)/pytest -m slurm tests/slurm

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/typing/hpcenc
	for folder in cluster tasks storage cli slurm; do ln -sfn ../../../$$folder build/typing/hpcenc/$$folder; done
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: see 'If python3 -m venv is missing' in README.md"; exit 1; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build
