# Each recipe makes .venv from pyproject.toml and constraints.txt first, if it is not there.

set shell := ["bash", "-euo", "pipefail", "-c"]

python := env("PYTHON", "python3")
bin := ".venv/bin"

# A process that dies ends the run: with a new one in its place, xdist may wait for ever.
pytest := "-m pytest -n 2 --dist loadfile --max-worker-restart=0"

# List the recipes
default:
    @just --list --unsorted

# Train a tiny T5 on the sample from scratch and ask it something (about a minute, no network)
demo: _venv
    {{ bin }}/python scripts/demo.py

# Lint, types, import rules, the site, then the fast tests
test: lint types docs-check docs
    {{ bin }}/python {{ pytest }}

# All tests, the slow ones too
test-slow: _venv
    {{ bin }}/python -m pytest -m "not gpu" --hypothesis-profile=thorough -o faulthandler_timeout=3600

# The fast tests with the oldest versions that pyproject.toml allows, in .venv-oldest
test-oldest: _venv
    {{ bin }}/python scripts/oldest.py > .venv/oldest.txt
    {{ python }} -m venv .venv-oldest
    .venv-oldest/bin/python -m pip install --quiet -c .venv/oldest.txt -c <(grep ^torch== constraints.txt) \
        -e '.[ctranslate2,eval,html,lora,report,serve]' hypothesis jsonschema openai pytest pytest-xdist tensorboard
    .venv-oldest/bin/python {{ pytest }}

# Build the wheel into dist/
wheel: _venv
    {{ bin }}/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Feed prepare so many lists of records that hypothesis makes up, as values and as files, anew each time
fuzz examples="10000": _venv
    for i in $(seq {{ examples }} -5000 1); do \
        FUZZ_EXAMPLES=$(( i < 5000 ? i : 5000 )) {{ bin }}/python -m pytest -q -k any_ tests/prepare/test_fuzz.py tests/prepare/test_fuzz_files.py; \
    done

# Ruff and the import rules between the layers
lint: _venv
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .
    {{ bin }}/lint-imports --no-cache

# mypy, strict
types: _venv
    {{ bin }}/mypy

# Run a benchmark; its --help says what it wants
bench name="reference" *args="--help": _venv
    {{ bin }}/python benchmarks/{{ name }}.py {{ args }}

# Try on one GPU what no test can try without one, in ten minutes; --tiny runs anywhere
gpu-check *args: _venv
    {{ bin }}/python scripts/gpu_check.py {{ args }}

# Check that the reference of flags is what the settings say
docs-check: _venv
    {{ bin }}/python scripts/flag_table.py --check

# Build the site into docs/_build/html, warnings as errors
docs: _venv
    {{ bin }}/python -m sphinx --fresh-env --write-all --fail-on-warning --keep-going --quiet docs docs/_build/html

[private]
_venv:
    @if [ ! -e .venv/ready ] || [ pyproject.toml -nt .venv/ready ] || [ constraints.txt -nt .venv/ready ]; then \
        echo "making .venv" >&2; \
        {{ python }} -m venv .venv; \
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
        touch .venv/ready; \
    fi
