# SPDX-License-Identifier: Apache-2.0
# make train   a trained network from nothing: environment, kernels, synthetic persons, training, evaluation
# make test    the same set-up, then the test suite without what takes minutes
# make test-slow | fallback  what takes minutes; the op tests on the ops in plain torch
# make real    train on the five real MPII images in REAL_DATA until they are known by heart
# make bench   each op and the pipeline against their peers on 1 and on 2 threads, into bench/results; then
#              python -m bench.page puts them into docs/benchmarks.md
# make bench-compare   the ops on 1 thread beside the last committed results
# make gpu               all that a GPU is rented for, into OUT: docs/gpu.md; its parts are gpu-check, gpu-report, gpu-more
# make compute-sanitizer the CUDA kernels under memcheck, racecheck and initcheck, into OUT; needs a GPU
# make gpu-rehearsal     the same as make gpu on the CPU, as far as that goes without a driver
# make integrations      fastpose inside mmpose and transformers, and their networks, in an environment of their own
# make fuzz    every op with arguments of every kind, for SECONDS in all; make libfuzzer: its C++ half by Clang's libFuzzer
# make soak    trains for MINUTES on files and packs with bad images: do memory, descriptors and threads stay what they are?
# make lint | cpp-test | sanitize | fuzz | emulate | cuda-compile | kernel-counts   what .ci/run adds to that
# make clean   forget the environment and every build output

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
REAL_DATA ?= $(or $(FASTPOSE_REAL_DATA),../shared/data)
BIN := $(abspath $(VENV))/bin
NATIVE := setup.py pyproject.toml CMakeLists.txt $(wildcard cmake/* csrc/*/*)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test test-slow fallback real bench bench-compare gpu gpu-check gpu-report gpu-more gpu-rehearsal compute-sanitizer integrations \
  lint cpp-test sanitize fuzz libfuzzer soak emulate cuda-compile kernel-counts clean

train: $(VENV)/.installed
	$(BIN)/python -m fastpose.train

# A process per core, with one thread each: most tests keep no more than one core busy, and threads that wait for each
# other's cores make the others slow. A test that hangs ends its process alone (tests/conftest.py).
PARALLEL := -n auto --maxprocesses=8 --dist=worksteal
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and (cuda or not tiles)"

# Four at once, whatever the number of cores: these mostly wait.
test-slow: PARALLEL := -n 4 --dist=worksteal
test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

fallback: $(VENV)/.installed-test
	FASTPOSE_FALLBACK=1 $(PYTEST) $(filter-out %kernel_paths.py,$(OP_TESTS)) tests/ops/test_compile.py

real: $(VENV)/.installed
	$(BIN)/python -m fastpose.train --recipe mpii_real5_resnet18_fcn_128 --data_root $(REAL_DATA)/mpii

BENCH := -m pytest bench --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=mean \
  --benchmark-storage=file://bench/results
bench: $(VENV)/.installed-test
	FASTPOSE_BENCH_THREADS=1 $(BIN)/python $(BENCH) --benchmark-save=1_thread
	FASTPOSE_BENCH_THREADS=2 $(BIN)/python $(BENCH) --benchmark-save=2_threads

COMMITTED = $(lastword $(sort $(shell git ls-files 'bench/results/*/*_1_thread.json')))
bench-compare: $(VENV)/.installed-test
	FASTPOSE_BENCH_THREADS=1 $(BIN)/python $(BENCH) --benchmark-compare=$(COMMITTED)

# mmpose asks for packages that no longer build, and for NumPy 1; nothing of the former is called here. The library is
# that of the other environment: same Python, same torch.
UPSTREAM := $(VENV)-integrations
$(UPSTREAM)/.installed: Makefile
	$(PYTHON) -m venv $(UPSTREAM)
	$(UPSTREAM)/bin/pip install --quiet "$(TORCH)" "numpy<2" "opencv-python-headless<4.12" "setuptools<80" scipy matplotlib \
	  torchvision pyyaml pycocotools "transformers>=5" addict json_tricks munkres rich six termcolor yapf pytest hypothesis
	$(UPSTREAM)/bin/pip install --quiet --no-deps mmpose==1.3.2 mmengine==0.10.7 mmcv-lite==2.2.0 xtcocotools==1.14.3
	touch $@

# In one call of pytest, so that tests/integrations/conftest.py is loaded for the recipes, too: it lets a torchvision for
# CUDA be imported beside a torch for the CPU, as pip installs them.
integrations: $(VENV)/.installed $(UPSTREAM)/.installed
	$(UPSTREAM)/bin/python -m pytest tests/integrations tests/commands/test_recipes.py -k "integrations or vitpose or sapiens2"

# Machines with a GPU may be offline: these take the environment if it is there, else the system's Python, which needs
# torch and the packages of bench/gpu_packages.txt. They fail where torch sees no GPU.
OUT ?= gpu-out
ANY_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
export FASTPOSE_COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)
gpu: PART_SECONDS := 840
gpu-check: PART_SECONDS := 400
gpu-report: PART_SECONDS := 460
gpu-more: PART_SECONDS := 240
gpu gpu-check gpu-report gpu-more:
	$(ANY_PYTHON) -m bench.gpu_session $(filter-out gpu,$(@:gpu-%=%)) --out $(OUT) --seconds $(PART_SECONDS)

compute-sanitizer:
	$(ANY_PYTHON) -m bench.gpu_session memcheck racecheck initcheck --patience 20 --out $(OUT)

gpu-rehearsal: $(VENV)/.installed-test
	$(BIN)/python -m bench.gpu_rehearsal

# torch first and by itself: whichever build of it is there, fastpose builds against that one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

# This distribution used to be called fastpose: an install of then goes, and what it left in the checkout.
$(VENV)/.installed: $(VENV)/.torch $(NATIVE)
	rm -rf fastpose.egg-info
	$(BIN)/pip uninstall --quiet --quiet --yes fastpose
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/pip install --quiet -e ".[dev]" "setuptools>=64" "cmake>=3.26" ninja "pybind11>=2.13"
	touch $@

lint: $(VENV)/.installed-dev
	PATH=$(BIN):$$PATH $(BIN)/pre-commit run --all-files --show-diff-on-failure

cpp-test: $(VENV)/.installed-dev
	PATH=$(BIN):$$PATH cmake -S . -B build/cpp -G Ninja -DFASTPOSE_WERROR=ON -DFASTPOSE_SANITIZE=ON
	PATH=$(BIN):$$PATH cmake --build build/cpp --target fastpose_cpp_tests
	PATH=$(BIN):$$PATH ctest --test-dir build/cpp --output-on-failure

# A second copy of the package, built with AddressSanitizer and UndefinedBehaviorSanitizer, under tests.
# Leaks are not looked for: Python keeps what it has allocated.
build/sanitize/.installed build/emulate/.installed: $(VENV)/.installed-dev $(NATIVE) $(wildcard tests/cuda_emulation/*) $(shell git ls-files 'fastpose/*.py')
	rm -rf $(@D) && mkdir -p $(@D)
	PATH=$(BIN):$$PATH FASTPOSE_CUDA=0 CMAKE_ARGS="-DFASTPOSE_SANITIZE=ON -DFASTPOSE_WERROR=ON $(if $(findstring emulate,$@),-DFASTPOSE_EMULATE_CUDA=ON)" \
	  $(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(@D) .
	touch $@

SANITIZED := FASTPOSE_FALLBACK=0 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" $(BIN)/python
# $(call under_sanitizers,folder,pytest's choice of tests)
define under_sanitizers
	cp -r tests pyproject.toml build/$(1)/
	cd build/$(1) && $(SANITIZED) -m pytest $(PARALLEL) -p no:cacheprovider -q $(2) $(OP_TESTS)
endef
OP_TESTS := $(addprefix tests/ops/test_,affine_crop.py render_heatmaps.py decode_heatmaps.py decode_simcc.py heatmap_mse_loss.py simcc_loss.py geometry.py kernel_paths.py hostile_arguments.py derivatives.py)

sanitize: build/sanitize/.installed
	$(call under_sanitizers,sanitize,-m "not tiles" -k "not compile")

# The C++ entries by themselves beside the ops from Python, each for half of the time, at each SIMD level of this machine.
SECONDS ?= 60
SEED ?= 0
FUZZER := build/fuzz/fastpose_fuzz
FUZZER_OPTIONS := -DFASTPOSE_SANITIZE=ON -DFASTPOSE_WERROR=ON -DFASTPOSE_TORCH_DIR=$$($(BIN)/python -c 'import torch, os; print(os.path.dirname(torch.__file__))')
fuzz: build/sanitize/.installed
	PATH=$(BIN):$$PATH cmake -S . -B build/fuzz -G Ninja $(FUZZER_OPTIONS)
	PATH=$(BIN):$$PATH cmake --build build/fuzz --target fastpose_fuzz
	cp -r tests build/sanitize/
	for level in plain avx2 avx512; do \
	  export FASTPOSE_SIMD=$$level seconds=$$(($(SECONDS) / 6)); \
	  $(BIN)/python -c 'import fastpose; fastpose.build_info()' || { [ $$level != plain ] && continue; exit 1; }; \
	  $(FUZZER) --seconds $$seconds --seed $(SEED) & entries=$$!; \
	  (cd build/sanitize && $(SANITIZED) -m tests.fuzz.fuzz_calls --seconds $$seconds --seed $(SEED)); calls=$$?; \
	  wait $$entries && [ $$calls = 0 ] || exit 1; \
	done

libfuzzer: $(VENV)/.installed-dev
	PATH=$(BIN):$$PATH CXX=clang++ cmake -S . -B build/libfuzzer -G Ninja $(FUZZER_OPTIONS) -DFASTPOSE_LIBFUZZER=ON
	PATH=$(BIN):$$PATH cmake --build build/libfuzzer --target fastpose_fuzz
	mkdir -p build/libfuzzer/corpus
	build/libfuzzer/fastpose_fuzz -max_total_time=$(SECONDS) -max_len=512 build/libfuzzer/corpus

MINUTES ?= 30
soak: $(VENV)/.installed-test
	$(BIN)/python -m studies.reliability.soak --minutes $(MINUTES)

# The CUDA kernels on the CPU (tests/cuda_emulation): out are the errors that only the CPU loops can raise, and batches
# whose size is their point.
emulate: build/emulate/.installed
	$(call under_sanitizers,emulate,-k "not compile and not on_the_cpu and not large and not grid_dimension and not gradcheck")

# Every architecture with every warning an error, against whatever torch is installed; the result must import and run.
ARCHITECTURES := 7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX
cuda-compile: $(VENV)/.installed-dev
	rm -rf build/cuda && mkdir -p build/cuda
	PATH=$(BIN):$$PATH FASTPOSE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ARCHITECTURES)" CMAKE_ARGS="-DFASTPOSE_WERROR=ON" \
	  $(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/cuda .
	cp -r tests pyproject.toml build/cuda/
	cd build/cuda && $(BIN)/python -m fastpose.doctor && FASTPOSE_FALLBACK=0 $(BIN)/python -m pytest -p no:cacheprovider -q tests/ops/test_geometry.py

# The instructions that the kernels of build/cuda issue for sm_90, beside the stored counts.
kernel-counts: $(VENV)/.installed-dev
	$(BIN)/python -m bench.kernels

clean:
	rm -rf $(VENV) $(UPSTREAM) build fastpose/*.so *.egg-info
