# `make quickstart` is the one command of the README; everything is installed into .venv, nothing outside this folder.
PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEMO := $(VENV)/.installed-demo
INSTALLED_DOCS := $(VENV)/.installed-docs

LOWEST := .venv-lowest

.PHONY: install install-demo install-docs quickstart demo docs test test-lowest package package-check lint clean

install: $(INSTALLED)

# onedl-mmcv asks for opencv-python, which links libGL: without a display (containers, cluster nodes) `import cv2` fails.
# The headless build has the same cv2 without the windows, so it takes its place here on every machine. Both write the folder
# cv2, so the other one goes first. `pip check` then misses opencv-python: it knows packages by their names only.
$(INSTALLED): setup.py $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, \
	this is " + sys.version.split()[0] + ": make install PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c requirements/constraints.txt -e '.[mm,weights,dev]'
	$(PIP) uninstall -q -y opencv-python
	$(PIP) install -c requirements/constraints.txt --no-deps --force-reinstall opencv-python-headless
	$(BIN)/python -c 'import cv2, mmrepmtl'
	@touch $@

quickstart: install
	$(BIN)/python tools/quickstart.py

install-demo: $(INSTALLED_DEMO)

$(INSTALLED_DEMO): $(INSTALLED) requirements/demo.txt
	$(PIP) install -c requirements/constraints.txt -r requirements/demo.txt
	$(BIN)/python -c 'import gradio'
	@touch $@

# Serves the model that `make quickstart` trains; `.venv/bin/python tools/demo.py WORK_DIR` serves another.
demo: install-demo
	$(BIN)/python tools/demo.py

install-docs: $(INSTALLED_DOCS)

$(INSTALLED_DOCS): $(INSTALLED) requirements/docs.txt
	$(PIP) install -c requirements/constraints.txt -r requirements/docs.txt
	@touch $@

# The site in docs/_build/html. A dead link, anchor or reference, and a docstring that cannot be rendered, are errors.
docs: install-docs
	rm -rf docs/api docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The quick tests with the lowest versions that requirements/ allow (of what they name; what these need is the newest).
# The ONNX export has higher bounds of its own (deploy.txt), so its tests are left out.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -m 'not slow' --ignore-glob='tests/deployment/test_export*' $(PYTEST_ARGS)

$(LOWEST)/.installed: $(INSTALLED)
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/python tools/misc/lowest_requirements.py runtime mm weights tests > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check uninstall -q -y opencv-python
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install -c requirements/constraints.txt --no-deps opencv-python-headless
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --no-deps -e .
	@touch $@

# Wheel and source distribution in dist/; what is left of an older build would go into them.
package: install
	rm -rf build dist *.egg-info
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'
	rm -rf build *.egg-info

# Tests the contents of both, and the wheel at work in a clean environment outside this folder.
package-check: install
	$(BIN)/python -m pytest tests/test_package.py

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis docs/api docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
