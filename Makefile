# The commands of this project. Each sets up what it needs in .venv; nothing else has to be installed by hand but
# Python >= 3.10, a C++17 compiler and make. CMake and ninja are fetched when the machine has none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt README.md LICENSE $(shell find csrc python -type f -not -name '*.pyc')
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test bench accuracy stress docs lint format clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out output

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests --pyargs mixflow

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt zuko || echo "no zuko: its rows stay empty"
	$(BIN)/python bench/ops.py

accuracy: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python bench/accuracy.py

stress: $(VENV)/.installed
	$(BIN)/python bench/inverse.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs output/docs

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mixflow._core

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[test,lint,docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist output
