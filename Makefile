# Everything here needs only Python 3.11 or newer and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint bench soak docs gallery clean

demo: .venv/.demo  ## record four CartPoles, and say how to watch them
	$(BIN)/python examples/parallel_cartpole.py

test: .venv/.test lint  ## the whole suite, file by file in three processes
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

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
