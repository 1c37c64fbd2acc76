# make demo   train on embedded real data, with and without PDT, and draw the comparison
# make test   lint, type-check and test every promise once
# make test-all   every test, long ones included, compiled as users compile; which lines and branches of pdt_optax none
#             runs; and the interactive notebook in a browser
# make smoke  all tables and figures of the paper, end to end at a tiny size: runs/smoke/index.html
# make docs   build the documentation into site/, every warning an error
# make dist   build sdist and wheel, install each into a fresh environment, and import it
# make audit      known vulnerabilities of everything that extras and groups install
# make test-min   test the library on the lowest versions that pyproject.toml admits
# make mutants    change the core in small ways, one at a time, and see whether a test fails; goes on where it stopped
# All set themselves up in a virtual environment inside the checkout, and compile what they run once: into .cache/.

PYTHON ?= python3
VENV ?= .venv
# uv where there is one. Else pip: groups need 25.1, and without --no-compile it would compile every file it installs.
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile
INSTALL = $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(VENV)/bin/python,$(PIP) --quiet 'pip>=25.1' && $(PIP))
# Of pyproject.toml, what users install is an extra; everything else is a group.
EXTRAS = demo experiments

.PHONY: demo test test-all lint smoke docs dist audit test-min mutants clean

# Programs that were compiled before, by the version of jax; tests/conftest.py takes them from the same place.
COMPILED = JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/jax/$$($(VENV)/bin/python -c \
	'from importlib.metadata import version; print(version("jax"))')" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

demo: $(VENV)/.demo
	$(COMPILED) $(VENV)/bin/python -m experiments.demo

test: $(VENV)/.test lint
	$(VENV)/bin/python -m pytest --numprocesses 2 -m "not slow"

# Without XLA flags, as users compile: `make test` cannot see what XLA's optimizations break. Coverage costs a sixth of the
# time; pyproject.toml says how much it must be.
test-all: export HYPOTHESIS_PROFILE = thorough
test-all: $(VENV)/.test $(VENV)/.browser lint
	XLA_FLAGS= $(VENV)/bin/python -m pytest --numprocesses 2 --cov --cov-report=term-missing:skip-covered
	$(VENV)/bin/python docs/browser.py runs/browser.png

# Where compiling is most of it.
QUICK = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false
smoke: export XLA_FLAGS = $(QUICK)
smoke: $(VENV)/.experiments
	$(COMPILED) $(VENV)/bin/python -m experiments.run all --scale smoke --fresh

lint: $(VENV)/.test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.docs
	$(VENV)/bin/python -m mkdocs build --strict

dist: $(VENV)/.dist
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist
	for file in dist/*; do \
		$(PYTHON) -m venv --clear dist/fresh && \
		dist/fresh/bin/python -m pip install --quiet --disable-pip-version-check "$$file" && \
		(cd dist/fresh && bin/python -c "import pdt_optax; print('$$file imports as', pdt_optax.__version__)") || exit 1; \
	done
	rm -rf dist/fresh

# --strict: a package that cannot be looked up is not a package without vulnerabilities.
audit: $(VENV)/.audit
	$(VENV)/bin/python -m pip freeze --exclude-editable > $(VENV)/audit.txt
	$(VENV)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/audit.txt

# What runs notebooks, other tools and the paper's experiments is left out at the lowest versions.
LIBRARY = pdt_optax $(addprefix tests/test_, accept.py checkpoint.py errors.py oracle.py pace.py plot.py predict.py properties.py \
	recorder.py storage.py toy.py wrapper.py)
# Old versions warn of what newer ones beneath them will drop: here that is no error.
MIN = $(VENV)-min
test-min: $(MIN)/.test
	$(MIN)/bin/python -m pytest --numprocesses 2 -m "not slow" -W default $(LIBRARY)

$(MIN)/.test: pyproject.toml
	$(PYTHON) -m venv --clear $(MIN)
	$(MIN)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(MIN)/bin/uv pip install --quiet --python $(MIN)/bin/python --resolution lowest-direct --editable '.[notebooks]' --group test
	touch $@

# Most of a test is compiling, and most mutants leave most of it as it is.
mutants: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/mutants/compiled
mutants: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
mutants: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1
mutants: export XLA_FLAGS = $(QUICK)
mutants: $(VENV)/.mutants
	$(VENV)/bin/python -m benchmarks.mutants run
	$(VENV)/bin/python -m benchmarks.mutants results

# An environment is remade when what it should hold changes.
$(VENV)/.%: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what '$*' needs into $(VENV) (a minute or two the first time)"
	$(INSTALL) --editable $(if $(filter $*,$(EXTRAS)),'.[$*]',. --group $*)
	touch $@

clean:
	rm -rf $(VENV) $(MIN) .cache runs dist site mutants
