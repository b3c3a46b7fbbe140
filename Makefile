# Two commands: `make sweep` tunes Llama-7B on the device that is here, `make test` runs every test. `make fuzz` damages
# databases at random until its time is over.
# Both set up .venv first, and again only when what they install from has changed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
READY := .venv/ready
comma := ,
GPU := $(wildcard /dev/nvidiactl /dev/dxg)
EXTRAS := $(if $(GPU),dev$(comma)cuda,dev)
# The tests start a PostgreSQL server of their own. Where its programs are missing and cannot be installed, the
# tests that need them are skipped, and say so.
POSTGRES := $(firstword $(shell command -v initdb) $(wildcard /usr/lib/postgresql/*/bin/initdb))
APT := $(if $(filter 0,$(shell id -u)),$(shell command -v apt-get))
GET_POSTGRES = $(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -qq postgresql >/dev/null
# Two at a time, each from its half of the list; who is done takes over half of what the other has left. On a GPU
# one after the other, because they share it.
PARALLEL := $(if $(GPU),,--numprocesses 2 --dist worksteal)
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')
CLANG_FORMAT := find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format

# SGLang, for the tests of its plugin, in an environment of its own: what it pins does not suit ours.
SGLANG := .venv-sglang
SGLANG_PIP := $(SGLANG)/bin/python -m pip --disable-pip-version-check -qq

# Of `make fuzz`: where its cases begin, and for how long it makes new ones.
SEED ?= 1
SECONDS ?= 60

.PHONY: sweep test test-sglang fuzz lint format

sweep: $(READY)
	$(BIN)/autotune sweep --shapes llama7b

test: $(READY)
	$(if $(POSTGRES),,$(if $(APT),-$(GET_POSTGRES)))
	$(BIN)/python -m pytest $(PARALLEL)

test-sglang: $(SGLANG)/ready
	$(SGLANG)/bin/python -m pytest tests/sglang

fuzz: $(READY)
	$(BIN)/python tests/fuzz_database.py $(SEED) $(SECONDS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CLANG_FORMAT) --dry-run --Werror

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CLANG_FORMAT) -i

# The build tools come first and stay, so that a rebuild of the extension compiles only what has changed.
BUILD_TOOLS := 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.20' 'ninja>=1.11'
$(READY): pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install $(BUILD_TOOLS)
	$(PIP) install --no-build-isolation --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

$(SGLANG)/ready: tests/sglang/requirements.txt pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	test -x $(SGLANG)/bin/python || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG_PIP) install $(BUILD_TOOLS)
	$(SGLANG_PIP) install --no-build-isolation --constraint constraints.txt -Cbuild-dir=build/sglang --editable .
	$(SGLANG_PIP) install --no-deps --requirement tests/sglang/requirements.txt
	touch $@
