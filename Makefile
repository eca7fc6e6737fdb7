# Everything here needs only Python 3.11 or newer and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test quick thorough lint bench soak docs gallery clean

# What tells soonest that something broke: decisions, floors, and each kind of data through a file and back.
QUICK := batch behind buffer deciding_endings deciding_environments deciding_paths deciding_triggers dumps \
  embedding endings environments episodes files gaps house info keeping old_recordings places streams timelines values

demo: .venv/.demo  ## record four CartPoles, and say how to watch them
	$(BIN)/python examples/parallel_cartpole.py

test: .venv/.test lint  ## the whole suite, file by file in three processes
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

quick: .venv/.test  ## what to run while editing; half a minute on two processors
	$(BIN)/ruff check --quiet
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile $(QUICK:%=tests/test_%.py) $(ARGS)

thorough: .venv/.test  ## the tests of random data, with twenty times as much of it
	TEST_EFFORT=20 $(BIN)/python -m pytest --numprocesses 3 $$(grep -l '^@examples' tests/test_*.py) $(ARGS)

lint: .venv/.test  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/.test  ## what recording costs; ARGS="--quick --only memory" for some of it
	$(BIN)/python -m benchmarks $(ARGS)

soak: .venv/.test  ## ten minutes of random environments, sinks and faults; ARGS="--seconds 60 --seed 1", or --only SEED
	$(BIN)/python -m tests.soak $(ARGS)

docs: .venv/.test  ## the site, in docs/_build; a warning is an error
	$(BIN)/sphinx-build -W docs docs/_build

gallery: .venv/.test  ## record the scenes of docs/gallery.md and take their pictures; ARGS="cameras agents" for some
	$(BIN)/python docs/gallery.py $(ARGS)

clean:
	rm -rf .venv recordings docs/_build

# torch goes first and alone: what is installed after it is satisfied with it, and pulls in no other build.
.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet -c constraints.txt -e '.[examples,video]'
	touch $@

.venv/.test: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ .venv/.demo
