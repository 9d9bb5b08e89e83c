# `make demo` and `make test` set up everything they need; later runs reuse it. Tests and benchmarks want mmcv-full too.
SOURCES := setup.py CMakeLists.txt pyproject.toml requirements.txt $(shell find csrc -name '*.cpp' -o -name '*.h')
BIN := .venv/bin

.PHONY: demo test test-mmdet2 test-mmdet3 test-faults test-threads test-onedl test-gpu test-npu test-npu-old test-torch test-torch-newest test-sanitize lint bench bench-npu measure figures aarch64 test-aarch64 clean

.venv/ready: $(SOURCES) scripts/setup_env.sh
	@bash scripts/setup_env.sh
	@touch $@

.venv/full: .venv/ready
	@bash scripts/setup_env.sh full
	@touch $@

# `make demo HOST=mmdet3` runs it on MMDetection 3.
HOST ?= mmdet2
$(if $(filter mmdet2 mmdet3,$(HOST)),,$(error HOST must be mmdet2 or mmdet3, got $(HOST)))
MMDET3 := PYTHONPATH="$(CURDIR)/.venv/mmdet3"
demo: .venv/ready
	$(if $(filter mmdet3,$(HOST)),$(MMDET3)) $(BIN)/python -m yolox_plugin.demo

test: test-npu test-mmdet2 test-mmdet3

# Up to four tests at once, each with one thread: more threads than cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal --durations=10

test-mmdet2: .venv/full
	@echo "== MMDetection 2.28.2"
	$(PYTEST)

# Those that know of a host; the others would be the same once more.
WITH_HOSTS := $(patsubst %,tests/core/test_%.py,annotation_index core inference losses network) \
	tests/run --ignore=tests/run/test_sharing.py
test-mmdet3: .venv/full
	@echo "== MMDetection 3.3.0"
	$(MMDET3) $(PYTEST) $(WITH_HOSTS) tests/mmdet3

# Kills, full disks, two machines, malformed inputs, random operands, in the numbers that the docs name; hours of some
# machines' time, and root. Not part of `make test`.
FAULTS := OMP_NUM_THREADS=1 $(BIN)/pytest --hypothesis-profile=faults -n 2 --dist worksteal -rA
test-faults: .venv/full test-threads
	PATH="$(CURDIR)/$(BIN):$$PATH" YOLOX_OPS_SANITIZE=address \
	  $(BIN)/pip install --quiet --no-build-isolation --no-deps --upgrade --target build/sanitize .
	$(SANITIZED) OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults/test_operators.py tests/faults/test_threads.py --hypothesis-profile=faults
	$(FAULTS) tests/faults/test_cache.py tests/faults/test_inputs.py tests/faults/test_ends.py tests/faults/test_machines.py
	$(MMDET3) $(FAULTS) tests/faults/test_inputs.py tests/faults/test_ends.py tests/faults/test_machines.py

# Where there is a GPU; not part of `make test`, in which no test sees one.
test-gpu: .venv/full
	YOLOX_TEST_GPU=1 $(PYTEST) tests/ops/test_cuda.py tests/mmdet2/test_cuda.py
	YOLOX_TEST_GPU=1 $(MMDET3) $(PYTEST) tests/mmdet3/test_cuda.py

.venv/onedl/ready: .venv/full
	@bash scripts/setup_env.sh onedl
	@touch $@

test-onedl: .venv/onedl/ready
	@echo "== MMDetection 3.5.1 of onedl"
	PYTHONPATH="$(CURDIR)/.venv/onedl" $(PYTEST) tests/core tests/mmdet3 tests/run

.venv-npu/ready: $(SOURCES) scripts/setup_npu_sim.sh tests/npu_sim/fake_cann.py $(shell find yolox_ops yolox_plugin -name '*.py')
	@bash scripts/setup_npu_sim.sh; status=$$?; \
	  if [ $$status = 77 ]; then echo "SKIPPED: tests on a simulated NPU"; elif [ $$status != 0 ]; then exit $$status; else touch $@; fi

# On the installed package: from the source tree, the operators built for the other torch would be found. Both devices
# that are simulated, Ascend 910B (A2) and 910A, on MMDetection 2.28.2 and on 3.3.0.
test-npu: .venv-npu/ready
	@if [ -e .venv-npu/ready ]; then for soc in A2 910A; do for mmdet in "" "$(CURDIR)/.venv-npu/mmdet3"; do \
	  echo "== simulated NPU, $$soc$${mmdet:+, MMDetection 3}" && PYTHONPATH="$$mmdet" \
	  SOC=$$soc $(PYTEST_NPU) tests/npu_sim || exit 1; \
	done; done; fi
NPU_VENV := .venv-npu
SIMULATED = TORCH_DEVICE_BACKEND_AUTOLOAD=0 TASK_QUEUE_ENABLE=0 TORCH_NPU_FALLBACK_CPU_DISABLE=1 LD_LIBRARY_PATH="$(CURDIR)/$(NPU_VENV)/fake_cann" PYTHONSAFEPATH=1
PYTEST_NPU = OMP_NUM_THREADS=1 $(SIMULATED) $(NPU_VENV)/bin/python -P -m pytest -rs -n auto --maxprocesses 4

# On the oldest torch and torch_npu; not part of `make test`. Without those of the self-check, which are about a newer
# torch_npu's profiler and its switch against fallbacks.
test-npu-old: NPU_VENV := .venv-npu-old
test-npu-old:
	@bash scripts/setup_npu_sim.sh old
	@for soc in A2 910A; do \
	  echo "== simulated NPU, $$soc, torch 2.1.0" && \
	  SOC=$$soc $(PYTEST_NPU) --ignore=tests/npu_sim/test_self_check.py tests/npu_sim || exit 1; \
	done

# The oldest torch, the one that everything else here uses, and the newest.
test-torch:
	bash scripts/test_torch.sh 2.1.0 2.11.0 2.14.1

test-torch-newest:
	bash scripts/test_torch.sh 2.14.1

# Python itself is not instrumented, so the runtimes are loaded first; it also leaks by design.
SANITIZED := PYTHONPATH="$(CURDIR)/build/sanitize" PYTHONSAFEPATH=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$(shell c++ -print-file-name=libasan.so) $(shell c++ -print-file-name=libubsan.so)"
test-sanitize: .venv/full
	PATH="$(CURDIR)/$(BIN):$$PATH" YOLOX_OPS_SANITIZE=1 \
	  $(BIN)/pip install --quiet --no-build-isolation --no-deps --upgrade --target build/sanitize .
	$(SANITIZED) $(BIN)/python -c 'from yolox_ops import _C; assert _C.sanitizers, "not the sanitized build"'
	$(SANITIZED) $(BIN)/pytest tests/ops -m "not compile"

# Python, torch and OpenMP are not instrumented; openmp_edges.c tells what OpenMP orders. First: is a planted race found?
THREADS := PYTHONPATH="$(CURDIR)/build/tsan" PYTHONSAFEPATH=1 OMP_NUM_THREADS=3 \
	TSAN_OPTIONS="halt_on_error=1 exitcode=66 report_thread_leaks=0 suppressions=$(CURDIR)/tests/faults/thread_sanitizer.txt" \
	LD_PRELOAD="$(shell c++ -print-file-name=libtsan.so) $(CURDIR)/build/tsan/openmp_edges.so"
test-threads: .venv/full
	PATH="$(CURDIR)/$(BIN):$$PATH" YOLOX_OPS_SANITIZE=thread \
	  $(BIN)/pip install --quiet --no-build-isolation --no-deps --upgrade --target build/tsan .
	cc -O1 -shared -fPIC -o build/tsan/openmp_edges.so tests/faults/openmp_edges.c -ldl
	$(THREADS) $(BIN)/python -c 'import torch, yolox_ops; torch.ops.yolox_ops.planted_race(1 << 20)' 2>&1 | grep -q "data race .*planted_race.cpp"
	$(THREADS) $(BIN)/python tests/ops/digests.py >/dev/null
	$(THREADS) $(BIN)/pytest tests/faults/test_threads.py tests/ops -m "not compile and not slow"

bench: .venv/full
	$(BIN)/python benchmarks/ops_bench.py

bench-npu: .venv-npu/ready
	$(SIMULATED) .venv-npu/bin/python -P benchmarks/npu_launch_bench.py $(NPU_BENCH)

# On a machine that does nothing else: the runs behind the figures of docs/, then the figures. LibreYOLO is a peer where
# it is installed: pip install --target=.venv/libreyolo --no-deps libreyolo==1.6.0 requests tqdm
measure: .venv/full .venv-npu/ready
	$(BIN)/python benchmarks/ops_bench.py --json docs/figures/ops.json
	PYTHONPATH=.venv/libreyolo $(BIN)/python benchmarks/train_bench.py --profile --json docs/figures/train.json
	$(BIN)/python benchmarks/pipeline_bench.py --json docs/figures/pipeline.json
	$(MMDET3) $(BIN)/python benchmarks/train_bench.py --profile --json docs/figures/train_mmdet3.json
	$(MMDET3) $(BIN)/python benchmarks/pipeline_bench.py --json docs/figures/pipeline_mmdet3.json
	SOC=A2 $(SIMULATED) .venv-npu/bin/python -P benchmarks/npu_launch_bench.py --json docs/figures/npu.json
	SOC=910A $(SIMULATED) .venv-npu/bin/python -P benchmarks/npu_launch_bench.py --json docs/figures/npu_910a.json
	$(MAKE) figures

figures: .venv/ready
	$(BIN)/python benchmarks/figures.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy yolox_ops yolox_plugin
	MYPYPATH=benchmarks:tests/npu_sim $(BIN)/mypy benchmarks/*.py
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

aarch64: .venv/ready
	bash scripts/check_aarch64.sh

# The operator tests under emulation, in build/aarch64; not part of `make test`.
test-aarch64:
	bash scripts/test_aarch64.sh

clean:
	rm -rf build yolox_ops/*.so .venv/ready .venv/full
