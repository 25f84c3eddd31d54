.PHONY: install hooks check test slow lint type format docs links look pictures ci release-check report bench

install:
	python -m pip install -c constraints.txt -e ".[dev]"

hooks:
	pre-commit install

check: lint type test

test:
	python -m pytest -n 2

slow:
	python -m pytest -n 2 -m slow

lint:
	ruff check .
	ruff format --check .

type:
	mypy

format:
	ruff check --select I --fix .
	ruff format .

docs:
	python -m sphinx -E -b html -n -W --keep-going -q docs docs/_build/html

# Addresses of other sites; links between the pages are checked by `docs`.
links:
	python -m sphinx -E -b linkcheck -q docs docs/_build/links

# Pages in a headless browser: none wider than a screen or a phone, none without its pictures.
look: docs
	python .ci/look.py

# Pictures in the README and the documentation, from a new run of the main job.
pictures:
	python -m sb3_hybrid_grpo --out results/first_run
	python -m benchmarks.pictures.first_run results/first_run
	python -m benchmarks.pictures.film results/first_run
	python -m benchmarks.pictures.screens

ci:
	.ci/run

# PYTHONS="python3.10 python3.13" tries the wheel with these.
release-check:
	rm -rf dist
	python .ci/release.py build
	python .ci/release.py try dist/*.whl $(PYTHONS)

report:
	python -m benchmarks.learning.report
	python -m benchmarks.speed.throughput_report

bench:
	python -m benchmarks.speed.branching_cost
