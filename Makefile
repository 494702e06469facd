# Two commands for a fresh machine with python3 >= 3.11, venv and make: `make demo` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.aerialseg-installed

.PHONY: setup demo test test-all test-py313 lint lock bench bench-gpu debian clean

setup: $(STAMP)  ## make .venv and install the locked packages into it (about 6 GB the first time, seconds later)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(PYTHON) || python3 -m venv $(VENV) || { echo "error: python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 69; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; remove $(VENV) and run again with a newer python3" >&2; exit 69; }
	@test -x $(VENV)/bin/uv || $(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --python $(PYTHON) --require-hashes -r requirements.lock
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps --editable .
	@touch $@

demo: setup  ## draw scenes, train, predict, evaluate: under five minutes on two cores
	$(PYTHON) -m aerialseg demo --out demo

test: setup  ## the default suite: a few minutes
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-all: setup debian  ## also what is slow or needs Debian packages: QGIS, GDAL's programs, Docker
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not gpu"

test-py313: setup  ## the default suite, QGIS and GDAL on Python 3.13: its own, or that of a Debian 13 made by debootstrap (root)
	@sh docker/test-py313.sh

lint: setup  ## ruff and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock: setup  ## resolve the newest versions again, for every supported Python at once
	$(VENV)/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-emit-index-url --quiet --custom-compile-command "make lock" -o requirements.lock

bench: setup  ## measure against the floors and on real pixels; results go to benchmarks/results/
	$(PYTHON) benchmarks/tile.py --write
	$(PYTHON) benchmarks/predict.py --write
	$(PYTHON) benchmarks/polygons.py --write
	$(PYTHON) benchmarks/evaluate.py --write
	$(PYTHON) benchmarks/costs.py --write
	$(PYTHON) benchmarks/real_austin.py --minutes 2.5 --jobs 2 --write
	$(PYTHON) benchmarks/real_austin.py --rows options --minutes 2 --jobs 2 --write
	$(PYTHON) benchmarks/real_kitsap.py --minutes 2 --write

bench-gpu: setup  ## the same questions on an NVIDIA card
	$(PYTHON) benchmarks/gpu.py --out benchmarks/results

debian:  ## what test-all needs from Debian or Ubuntu (asks for root)
	@sh docker/debian-packages.sh

clean:  ## remove what the commands made here, but no data
	rm -rf demo .py313 .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
