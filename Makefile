# make demo   train on embedded real data, with and without PDT, and draw the comparison
# make test   lint, type-check and test
# make smoke  all tables and figures of the paper, end to end at a tiny size: runs/smoke/index.html
# make docs   build the documentation into site/, every warning an error
# make dist   build sdist and wheel, install each into a fresh environment, and import it
# All set themselves up in a virtual environment inside the checkout.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

# AdamW at its customary 3e-4; experiments/results has the tuned 1e-3 beside it.
DIGITS = --data digits --width 0.25 --image-size 64 --batch-size 64 \
	--optimizer adamw --learning-rate 3e-4 --epochs 40

.PHONY: demo test lint smoke docs dist clean

demo: $(VENV)/.experiments
	$(VENV)/bin/python -m experiments.cifar_alexnet $(DIGITS) --seeds 0 --fresh --out runs/demo

test: $(VENV)/.test lint
	$(VENV)/bin/python -m pytest --numprocesses 2

# Compiling is most of it.
smoke: export XLA_FLAGS = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
smoke: $(VENV)/.experiments
	$(VENV)/bin/python -m experiments.run all --scale smoke --fresh --out runs

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

# An environment is remade when what it should hold changes.
$(VENV)/.%: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what '$*' needs into $(VENV) (a minute or two the first time)"
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) runs dist site
