# Every target sets up what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test exhaustive check lint types docs links clean

quickstart: .venv/installed
	$(BIN)/supernet quickstart

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

# With every model of timm's and every large space, for a release or a change of families.
exhaustive: export EXHAUSTIVE_TESTS = 1
exhaustive: test

# For work in between: the style, the types of what packages offer, and the tests that take no more than seconds.
check: lint types
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

docs: .venv/documented
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build

# Follows every link that leads outside: needs the network, so the tests and .ci/run do without.
links: .venv/documented
	$(BIN)/sphinx-build -b linkcheck --quiet docs docs/_build/links

clean:
	rm -rf .venv docs/_build runs/quickstart

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, not %s: say make PYTHON=python3.12, for example" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[onnx,report,test]"
	@touch $@

.venv/documented: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	@touch $@
