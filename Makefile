# make setup | quickstart | test | test-all | bench | methods-table | ablations | lint | wheel
.PHONY: setup quickstart lint test test-all bench methods-table ablations wheel clean
export PYTHONUNBUFFERED = 1
BIN = .venv/bin

setup:
	@sh scripts/setup.sh

quickstart: setup
	@$(BIN)/python -m vergence.pipelines.quickstart

lint: setup
	@mkdir -p build/dev/vergence
	@for p in platform methods pipelines; do ln -sfn ../../../$$p build/dev/vergence/$$p; done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/dev:tests $(BIN)/mypy -p vergence.platform -p vergence.methods -p vergence.pipelines -p tests -p benchmarks
	PYTHONPATH=build/dev $(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

test-all: test
	$(BIN)/python tests/mutations.py
	$(BIN)/python -m pytest -m slow
	$(BIN)/python tests/kill_campaign.py

bench: setup
	@sh benchmarks/setup.sh
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks $(BENCH)

methods-table: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.methods_table $(TABLE)

ablations: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablations $(ABLATIONS)

wheel: setup
	rm -rf build/lib build/bdist.* && $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf .venv .venv-bench build dist *.egg-info
