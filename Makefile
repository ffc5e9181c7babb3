# The commands of this project. Each installs what it needs in .venv. Only Python >= 3.10, a C++17 compiler and make have
# to be there before. If the machine has no CMake or ninja, pip downloads them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt README.md LICENSE $(shell find csrc python -type f -not -name '*.pyc')
CPP := $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test test-slow gpu bench bench-flows bench-jobs bench-robust accuracy emulated stress pictures docs wheel sanitize fuzz coverage release-check lint format clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out output

# The tests run in several processes, each with one thread (tests/conftest.py). `make test` leaves out those marked
# `slow`, and .ci/run runs both. WORKERS=0 runs them one after another in one process.
WORKERS ?= auto
TESTS := $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist worksteal tests --pyargs mixflow
test: $(VENV)/.installed
	$(TESTS) -m "not slow"

test-slow: $(VENV)/.installed
	$(TESTS) -m slow

# On a machine with a GPU and nvcc: a build for it, tests, memory checks, benchmark and steps of training, in eight
# minutes. Nothing is downloaded or installed: PYTHON must already have torch.
gpu:
	$(PYTHON) tools/gpu.py

bench: $(VENV)/.installed
	$(BIN)/python bench/ops.py

# Flows against those of zuko: on your own tables with DATA="a.csv b.csv", two minutes a flow. Without DATA, on data whose
# density is known.
bench-flows: $(VENV)/.installed
	$(BIN)/python bench/flows.py $(DATA)

# Whole jobs: steps of training, fits, scoring and sampling, in one minute. Then a training loop written by hand, on two
# moons, against the spline flows of zuko and nflows, if they are installed.
bench-jobs: $(VENV)/.installed
	$(BIN)/python bench/ops.py --threads 1 --only jobs --out build/jobs
	$(BIN)/python bench/jobs.py

# Fits with default settings on awkward data of every kind, and on your own tables with DATA="a.csv b.csv". Writes the table
# of the docs.
bench-robust: $(VENV)/.installed
	$(BIN)/python bench/robust.py $(DATA) --table docs/robust-table.md

accuracy: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python bench/accuracy.py

# The accuracy of the CUDA kernels without a GPU: a module in which they are compiled as C++ and work on the CPU's memory.
EMULATED := build/emulated
emulated: $(VENV)/.installed
	rm -rf $(EMULATED)/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(EMULATED)/site . \
	  -C build-dir=$(EMULATED)/cmake -C cmake.define.MIXFLOW_CUDA=EMULATED -C cmake.define.MIXFLOW_X86_BUILDS=avx2
	PYTHONPATH=$(EMULATED)/site:tests $(BIN)/python bench/accuracy.py --emulated --quick

stress: $(VENV)/.installed
	$(BIN)/python bench/inverse.py

# The pictures of the documentation, from the Python of its own pages.
pictures: $(VENV)/.installed
	$(BIN)/python docs/pictures.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Writes the sdist and a wheel for this machine to dist/, or one wheel for each Python of
# `make wheel PYTHONS="python3.10 python3.13"`.
PYTHONS ?= $(BIN)/python
wheel: $(VENV)/.release
	$(BIN)/python tools/wheel.py build --out dist $(PYTHONS)

# Random calls of the kernels under sanitizers, of the emulated CUDA kernels too. The thread sanitizer checks the threads of
# the callers. It does not support OpenMP, so its build has none.
CASES ?= 1000
CUDA_CASES ?= 500
CAPABILITIES := baseline $(if $(shell grep -m1 -w avx2 /proc/cpuinfo 2>/dev/null),avx2) \
  $(if $(shell grep -m1 -w avx512bw /proc/cpuinfo 2>/dev/null),avx512)
sanitize: build/address/fuzz build/thread/fuzz
	for capability in $(CAPABILITIES); do MIXFLOW_CPU_CAPABILITY=$$capability build/address/fuzz --cases $(CASES) || exit 1; done
	build/thread/fuzz --cases $(CASES) --callers 4
	build/address/fuzz_cuda --cases $(CUDA_CASES)

# The same for SECONDS, from a new seed.
SECONDS ?= 300
fuzz: build/address/fuzz
	build/address/fuzz --seconds $(SECONDS) --seed $$(date +%s)

build/%/fuzz: CMakeLists.txt CMakePresets.json $(CPP) $(VENV)/.cmake
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset $* -G Ninja
	PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset $*
	touch $@

# Lists the lines of Python and C++ that no test reaches, and the error messages that no test triggers. A line of a template
# counts once. gcovr does not find the headers of pybind11, which pip deletes after the build; they are of no interest.
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

# All that a release must pass, in about an hour. It ends with a summary.
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

# "mixflow[release]" by name finds the installed package. By path, pip would build it again.
$(VENV)/.release: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "mixflow[release]"
	touch $@

$(VENV)/.cmake: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cmake ninja
	touch $@

clean:
	rm -rf $(VENV) build dist output
