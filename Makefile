# Needs Python 3.11 or newer, a C++ compiler and make; everything else goes into .venv. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
BUILD_INPUTS := setup.py pyproject.toml $(CXX_FILES)
GPU_ARCH ?= 9.0
MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)

export MAX_JOBS
export PYTHONUNBUFFERED := 1
# Tests start a hundred processes: what they import is compiled by the first, and all that they never import by none.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help test demo gpu gpu-libraries venv lint build check hunt bench docs wheels clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

test: ## Lint, build and test (first run: makes .venv)
	$(MAKE) lint
	$(MAKE) build
	$(MAKE) check

demo: build ## Train on real handwritten digits and show the samples
	$(BIN)/python examples/demo.py

gpu: ## Measure on the present GPU with the ambient python3, offline: make gpu OUT=dir [STAGES="load smoke …"]
	@test -n "$(OUT)" || { echo "make gpu: say where results go: make gpu OUT=dir"; exit 2; }
	bash benchmarks/run_gpu.sh "$(OUT)" $(STAGES)

# File names carry the Python version: these lie beside the libraries of another Python.
gpu-libraries: ## Compile for a GPU elsewhere: make gpu-libraries PYTHON=(a Python with the torch that is there)
	GNFAST_BUILD=cuda TORCH_CUDA_ARCH_LIST=$(GPU_ARCH) $(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m gnfast.bench.libraries
	@echo "To be copied with the working tree by name, as git ignores them:"
	@ls -l gnfast/_C*"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"

venv: $(INSTALLED) ## Make .venv with the pinned packages

$(INSTALLED): requirements/lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "gnfast needs Python 3.11 or newer; choose one with make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements/lock.txt
	touch $@

lint: $(INSTALLED) ## Check style: ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

build: $(BUILT) ## Compile csrc/ and install gnfast into .venv, editable

$(BUILT): $(INSTALLED) $(BUILD_INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# One test process per core with one thread each: PyTorch's threads would only compete.
check: $(BUILT) ## Run the tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(MAX_JOBS) --dist worksteal

hunt: $(BUILT) ## Look for failures by chance: make hunt MINUTES=n [ONLY="critics files …"] [SEED=n]
	@test -n "$(MINUTES)" || { echo "make hunt: say for how long: make hunt MINUTES=10"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hunt $(ONLY) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: $(BUILT) ## Time the operations against plain PyTorch on this machine
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=min

docs: $(INSTALLED) ## Build the documentation as site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheels: $(INSTALLED) ## Build sdist and wheels and try them out: make wheels [PYTHONS="python3.12 …"] [TORCH="torch==2.13.0 …"]
	$(BIN)/python release/wheels.py dist $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(TORCH),--torch "$(TORCH)")

clean: ## Remove what was built, .venv included
	rm -rf $(VENV) build dist site *.egg-info gnfast/*.so .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
