# make demo   installs into .venv, then searches a policy for handwritten digits, writes its report and an export
# make test   installs into .venv, then checks style, types, layers and tests
# make fuzz   installs likewise, then reads 10,000 harmful files, arguments and studies, at random (40 minutes at most)
# make long   installs likewise, then runs the tests with their long forms
# make docs   installs likewise, and what builds sites, then makes site/ (open site/index.html)
# make lowest installs the lowest versions that pyproject.toml allows into .venv-lowest, then runs the tests there
# SYSTEM_SITE=1 uses the torch and torchvision that the system's Python already has.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
SYSTEM_SITE ?=
BIN := $(VENV)/bin

.PHONY: demo test fuzz long docs lowest clean
.SILENT:

demo: $(VENV)/installed
	echo
	echo "A search on handwritten digits: a teacher is trained, then references, 8 trials and 18 confirmation runs."
	echo "About 4 minutes on 2 cores; Ctrl-C leaves a report of the best so far, a second 'make demo' goes on."
	echo
	$(BIN)/kdsearch search digits
	$(BIN)/kdsearch export runs/digits --to torchvision -o runs/digits/policy_torchvision.py
	$(BIN)/kdsearch frames runs/digits --to csv -o runs/digits/csv > runs/digits/csv.txt && rm runs/digits/csv.txt
	echo "frames       runs/digits/frames/*.parquet, runs/digits/csv/*.csv"

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal

fuzz: $(VENV)/installed
	KDSEARCH_FUZZ=1 $(BIN)/pytest tests/fuzz -n 2 --timeout 2400

long: $(VENV)/installed
	KDSEARCH_LONG=1 $(BIN)/pytest -n 2 --dist worksteal --timeout 2400

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	echo "site/index.html; its search needs a server: $(PYTHON) -m http.server -d site"

# An old library may warn of what a newer one has renamed; that is not ours to mend.
lowest: $(LOWEST)/installed
	$(LOWEST)/bin/pytest -n 2 --dist worksteal -W default::DeprecationWarning -W default::FutureWarning

CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"kdsearch needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor} (make PYTHON=python3.12 ...)")'

$(VENV)/installed: pyproject.toml
	$(CHECK_PYTHON)
	test -n "$(SYSTEM_SITE)" || echo "Installing into $(VENV): torch, torchvision and their libraries, about 5 GB on disk, some minutes."
	$(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(LOWEST)/installed: pyproject.toml tools/lowest.py
	$(CHECK_PYTHON)
	echo "Installing into $(LOWEST): the lowest versions of torch, torchvision and the rest, about 6 GB on disk, some minutes."
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(LOWEST)/bin/python tools/lowest.py pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) runs site
