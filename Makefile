.PHONY: test lint type format bench

test:
	python -m pytest -n 2

lint:
	ruff check .
	ruff format --check .

type:
	mypy

format:
	ruff check --select I --fix .
	ruff format .

bench:
	python -m benchmarks.speed.branching_cost
