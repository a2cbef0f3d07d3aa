# Two commands for users: `make demo` and `make test`. Each makes .venv where it is missing and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find astrofed client configs server shared simulations -name '*.py' -o -name '*.html' -o -name '*.toml' 2>/dev/null)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check dev clean

demo: $(VENV)/.package
	$(BIN)/astrofed simulate configs/quickstart.toml

test: $(VENV)/.package $(VENV)/.tools
	$(BIN)/pytest -n 2 --dist loadfile

# What CI runs besides the tests, on the installed package.
check: $(VENV)/.package $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p astrofed
	cd $(VENV) && bin/lint-imports ../pyproject.toml --no-cache

# For developers: edits take effect at once.
dev: $(VENV)/.package $(VENV)/.tools
	$(BIN)/pip install -q -c constraints.txt --no-deps -e .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.dependencies: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt .
	touch $@

$(VENV)/.tools: $(VENV)/.dependencies
	$(BIN)/pip install -q -c constraints.txt '.[dev]'
	touch $@

# The package is installed as its users get it, so that a file missing from the wheel is found.
$(VENV)/.package: $(VENV)/.dependencies $(SOURCES)
	rm -rf build
	$(BIN)/pip install -q --no-deps --force-reinstall .
	touch $@
