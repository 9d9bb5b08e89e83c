# `make test` sets up everything it needs; later runs reuse it.
SOURCES := setup.py CMakeLists.txt pyproject.toml requirements.txt $(shell find csrc -name '*.cpp' -o -name '*.h')
BIN := .venv/bin

.PHONY: test lint bench aarch64 clean

.venv/ready: $(SOURCES) scripts/setup_env.sh
	@bash scripts/setup_env.sh
	@touch $@

test: .venv/ready
	$(BIN)/pytest

bench: .venv/ready
	$(BIN)/python benchmarks/ops_bench.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy yolox_ops
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

aarch64: .venv/ready
	bash scripts/check_aarch64.sh

clean:
	rm -rf build yolox_ops/*.so .venv/ready
