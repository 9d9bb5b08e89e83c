# `make demo` and `make test` set up everything they need; later runs reuse it.
SOURCES := setup.py CMakeLists.txt pyproject.toml requirements.txt $(shell find csrc -name '*.cpp' -o -name '*.h')
BIN := .venv/bin

.PHONY: demo test lint bench aarch64 clean

.venv/ready: $(SOURCES) scripts/setup_env.sh
	@bash scripts/setup_env.sh
	@touch $@

demo: .venv/ready
	$(BIN)/python -m yolox_plugin.demo

test: .venv/ready
	$(BIN)/pytest

bench: .venv/ready
	$(BIN)/python benchmarks/ops_bench.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy yolox_ops yolox_plugin
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

aarch64: .venv/ready
	bash scripts/check_aarch64.sh

clean:
	rm -rf build yolox_ops/*.so .venv/ready
