# make run        install into .venv; explain the hand-written example, then measure the speed of this machine
# make quick      lint, and one case for each backend and kernel class, in less than a minute on two cores;
#                 make quick K=cpu: what a change to that part needs (QUICK_... below has the parts)
# make test       install what the tests need into .venv; run them all, in about 14 minutes on two cores
# make lint       ruff and mypy
# make package    build the wheel and the sdist; install each into an empty environment and try it
# make bench      our backends (build/bench.json), then the peers (bench/results/, with pictures); fails if a target is
#                 missed (ours alone, in 4 minutes: bench/bench_cpu.py --no-peers; several machines in one table:
#                 bench/report.py FILE FILE; beside another commit: bench/compare.py --base REV)
# make accuracy   every float32 q and 10^8 float64 q through every CPU backend, JAX, torch and the textbook formula;
#                 writes docs/accuracy.md (half an hour)
# make fuzz       search for inputs that break the library, a minute (FUZZ_LIMIT) for each of two targets (Linux x86-64)
# make faults     kills, full disks, memory limits, signals and many threads, at length
# make proof      the GPU kernels executed without a GPU at every border of their classes (20 minutes or more)
# make large      more than 2^31 elements, in up to 17 GB of memory
# make mutation   plant mistakes in the sources one at a time: the tests must notice each
# make oldest     the tests with the oldest versions that pyproject.toml allows (Python 3.11)
# make advisories    known vulnerabilities of what is installed
# make reproducible  two builds of the wheel, which must have the same bytes
# make gpu        everything that needs a GPU, in 6 minutes; installs into .venv. With the packages of another Python, and
#                 offline: make gpu PYTHON=python3 GPU_OPTIONS="--only parity small --out DIR"
# make clean      remove .venv, build and dist

PYTHON = .venv/bin/python
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: run quick test lint package bench gpu accuracy fuzz faults proof large mutation oldest advisories reproducible clean

run: .venv/.run
	.venv/bin/sigmoid-l2 trace </dev/null
	@echo
	.venv/bin/python bench/throughput.py

# In several processes. What one of them has compiled for the CPU is in numba's cache for the others.
PARALLEL = -n auto --maxprocesses 8 --dist worksteal

test: .venv/.test
	.venv/bin/python -m pytest $(PARALLEL) tests bench/tests

# What `make quick K=...` gives to pytest, by the part that was changed.
K = classes
host = $(patsubst %,tests/host/test_%.py,$(1))
KERNEL_PROOF = tests/gpu/test_proof.py tests/gpu/test_traffic.py
QUICK_classes = tests/host/test_parity.py::test_small_shapes tests/host/test_parity.py::test_large_shapes \
                tests/gpu/test_proof.py::test_every_way -k "3-3 or 37-7 or 64-65 or every_way"
QUICK_cpu = $(call host,simd parity same_bits quiet) -k "not cupy and not numba-cuda"
QUICK_cupy = $(KERNEL_PROOF) -k cupy
QUICK_numba-cuda = $(KERNEL_PROOF) -k numba-cuda
QUICK_gpu-host = $(call host,offload streams cuda_arrays dispatch) tests/gpu/test_end_to_end.py
QUICK_api = $(call host,arguments plain bad_input bad_output odd_input dispatch settings processors import not_files)
QUICK_threads = $(call host,threads workers same_bits) tests/attack/test_faults.py tests/attack/test_faults_calls.py
QUICK_frameworks = $(call host,host_arrays meaning torch torch_func torch_compile jax jax_transformations pages)
QUICK_types = $(call host,typing docstrings)
QUICK_explain = $(call host,trace check_grad check_steps mistakes mistakes_target html)
QUICK_cli = $(call host,cli cli_files cli_input cli_trace cli_target) tests/attack/test_fuzz.py tests/attack/test_faults_files.py
QUICK_accuracy = $(call host,gradient_truth) tests/accuracy
QUICK_bench = bench/tests
QUICK_docs = $(call host,documents examples)
PARTS = $(patsubst QUICK_%,%,$(filter QUICK_%,$(.VARIABLES)))

quick: lint .venv/.test
	.venv/bin/python -m pytest $(PARALLEL) $(or $(QUICK_$(K)),$(error K is one of $(PARTS)))

# mypy finds a package only where its folders lie together; these links bring them together.
lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf build/typed
	mkdir -p build/typed/sigmoid_l2
	ln -s $(CURDIR)/src/sigmoid_l2/* $(CURDIR)/kernels build/typed/sigmoid_l2
	MYPYPATH=build/typed .venv/bin/mypy

# What a user gets: the wheel and the sdist, each installed into an empty environment.
package: .venv/.dev
	.venv/bin/python tests/attack/check_package.py

# On Linux PyPI's torch comes with gigabytes of CUDA, which these benchmarks do not use. Its CPU-only build:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make bench
bench: .venv/.bench
	mkdir -p build
	.venv/bin/python -m pytest bench/bench_backends.py --benchmark-json=build/bench.json
	.venv/bin/python bench/report.py build/bench.json
	.venv/bin/python bench/bench_cpu.py

# bench/gpu_check.py says what it does. It takes the packages that PYTHON has, and pip and the network are not needed.
ifeq ($(PYTHON),.venv/bin/python)
gpu: .venv/.test .venv/.bench
endif
gpu:
	$(PYTHON) bench/gpu_check.py $(GPU_OPTIONS)

accuracy: .venv/.test .venv/.bench
	PYTHONPATH=tests .venv/bin/python -m accuracy

FUZZ_LIMIT = -max_total_time=60
fuzz: .venv/.fuzz
	.venv/bin/python tests/attack/fuzz/run.py call $(FUZZ_LIMIT)
	.venv/bin/python tests/attack/fuzz/run.py files $(FUZZ_LIMIT)

mutation: .venv/.test .venv/.frameworks
	.venv/bin/python tests/attack/mutation/check.py --json build/mutation.json

# -rP shows what the tests that pass have printed: what was met how often.
faults: .venv/.test
	.venv/bin/python -m pytest -m faults -rP tests/attack/test_faults_files.py tests/attack/test_faults_calls.py

proof: .venv/.test
	.venv/bin/python -m pytest $(PARALLEL) -m proof tests/gpu

large: .venv/.test
	.venv/bin/python -m pytest -m large tests/attack/test_large.py

oldest:
	python3.11 -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet -c tests/attack/oldest.txt -e '.[test]'
	build/oldest/bin/python -m pytest $(PARALLEL) tests bench/tests

# Without --strict pip-audit says that all is well where it could not ask.
advisories: .venv/.test
	python3 -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	.venv/bin/python -m pip freeze --exclude-editable > build/installed.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r build/installed.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r tests/attack/oldest.txt

reproducible: .venv/.dev
	.venv/bin/python tests/attack/check_package.py twice

.venv/bin/python:
	python3 -m venv .venv

# The stamps make a second `make` start at once; a changed pyproject.toml installs anew.
.venv/.run: pyproject.toml | .venv/bin/python
	$(PIP) install -e .
	touch $@

.venv/.test .venv/.dev .venv/.bench .venv/.fuzz .venv/.frameworks: .venv/.%: pyproject.toml | .venv/bin/python
	$(PIP) install -e '.[$*]'
	touch $@ .venv/.run

clean:
	rm -rf .venv build dist
