# The commands of this project. Each sets up what it needs in .venv; nothing else has to be installed by hand but
# Python >= 3.10, a C++17 compiler and make. CMake and ninja are fetched when the machine has none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt README.md LICENSE $(shell find csrc python -type f -not -name '*.pyc')
CPP := $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test gpu bench bench-flows bench-jobs bench-robust accuracy emulated stress docs wheel sanitize fuzz coverage release-check lint format clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out output

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests --pyargs mixflow

# On a machine with a CUDA device and nvcc: a build for it, tests, sanitizer, benchmark, steps of training, in eight
# minutes. Nothing is fetched or installed: PYTHON is one that has torch.
gpu:
	$(PYTHON) tools/gpu.py

bench: $(VENV)/.installed
	$(BIN)/python bench/ops.py

# Flows against zuko's on tables of your own, DATA="a.csv b.csv", two minutes a flow; without DATA, against known truths.
bench-flows: $(VENV)/.installed
	$(BIN)/python bench/flows.py $(DATA)

# What people wait for: steps of training, fits, scoring and sampling, in one minute. Then the training loop on two moons
# that people write by hand, against the spline flows of zuko and nflows where installed.
bench-jobs: $(VENV)/.installed
	$(BIN)/mixflow bench --threads 1 --only jobs
	$(BIN)/python bench/jobs.py

# Fits with defaults on awkward data of every kind, and on tables of your own if DATA names some: the table in the docs.
bench-robust: $(VENV)/.installed
	$(BIN)/python bench/robust.py $(DATA) --table docs/robust-table.md

accuracy: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python bench/accuracy.py

# The accuracy of the CUDA kernels without a GPU: compiled as C++, in a module that takes the CPU's memory for a device's.
EMULATED := build/emulated
emulated: $(VENV)/.installed
	rm -rf $(EMULATED)/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(EMULATED)/site . \
	  -C build-dir=$(EMULATED)/cmake -C cmake.define.MIXFLOW_CUDA=EMULATED -C cmake.define.MIXFLOW_X86_BUILDS=avx2
	PYTHONPATH=$(EMULATED)/site:tests $(BIN)/python bench/accuracy.py --emulated --quick

stress: $(VENV)/.installed
	$(BIN)/python bench/inverse.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# The sdist and this machine's wheel in dist/, or one a Python: make wheel PYTHONS="python3.10 python3.13".
PYTHONS ?= $(BIN)/python
wheel: $(VENV)/.release
	$(BIN)/python tools/wheel.py build --out dist $(PYTHONS)

# Random calls of the kernels under sanitizers, the CUDA kernels' emulation among them. The thread sanitizer sees the
# callers' threads; OpenMP's it does not know.
CASES ?= 1000
CUDA_CASES ?= 500
CAPABILITIES := baseline $(if $(shell grep -m1 -w avx2 /proc/cpuinfo 2>/dev/null),avx2) \
  $(if $(shell grep -m1 -w avx512bw /proc/cpuinfo 2>/dev/null),avx512)
sanitize: build/address/fuzz build/thread/fuzz
	for capability in $(CAPABILITIES); do MIXFLOW_CPU_CAPABILITY=$$capability build/address/fuzz --cases $(CASES) || exit 1; done
	build/thread/fuzz --cases $(CASES) --callers 4
	build/address/fuzz_cuda --cases $(CUDA_CASES)

# For minutes, from a new seed.
SECONDS ?= 300
fuzz: build/address/fuzz
	build/address/fuzz --seconds $(SECONDS) --seed $$(date +%s)

build/%/fuzz: CMakeLists.txt CMakePresets.json $(CPP) $(VENV)/.cmake
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset $* -G Ninja
	PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset $*
	touch $@

# Lines of Python and C++ that the tests reach, and whether every error message is among them. A line of a template
# counts once; pybind11's headers, which the build's own environment took with it, are not found, nor wanted.
COVERAGE := build/coverage
coverage: $(VENV)/.release
	rm -rf $(COVERAGE)/site && find $(COVERAGE) -name '*.gcda' -delete 2>/dev/null; true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(COVERAGE)/site . \
	  -C build-dir=$(COVERAGE)/cmake -C install.strip=false -C cmake.define.MIXFLOW_CUDA=OFF \
	  -C cmake.define.MIXFLOW_INSTRUMENT=--coverage -C cmake.define.MIXFLOW_X86_BUILDS=avx2
	PYTHONPATH=$(abspath $(COVERAGE)/site) $(BIN)/python -m coverage run -m pytest -q tests --pyargs mixflow
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage json --quiet -o $(COVERAGE)/python.json
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/gcovr --root . --filter csrc/ --merge-lines --gcov-ignore-errors=source_not_found --gcov-ignore-parse-errors=all \
	  --json $(COVERAGE)/native.json --txt - $(COVERAGE)/cmake
	$(BIN)/python tools/raised.py $(COVERAGE)/python.json $(COVERAGE)/native.json

# All that a release must pass, in an hour or so; ends with a summary.
release-check: $(VENV)/.release
	$(BIN)/python tools/release_check.py

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

# By name: it is there already, and by path it would be built again.
$(VENV)/.release: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "mixflow[release]"
	touch $@

$(VENV)/.cmake: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cmake ninja
	touch $@

clean:
	rm -rf $(VENV) build dist output
