.PHONY: check format test

check: ## what a commit must pass: style, types, doctests and fast tests
	ruff check .
	ruff format --check .
	mypy
	pytest -q -m 'not long and not foreign and not wheel_network and not slow'

format:
	ruff check --fix .
	ruff format .

test: ## the default suite
	pytest
