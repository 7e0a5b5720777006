# make run    install into .venv; the hand-written example explained, then the speed of this machine
# make test   install what the tests need into .venv; run them all
# make lint   ruff and mypy
# make bench  our backends, table and picture under build/; the peers, under bench/results/; fails if a target is missed
# make gpu    everything that needs a GPU, in the environment of PYTHON (default: .venv); works offline

PYTHON = .venv/bin/python
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: run test lint package bench gpu clean

run: .venv/.run
	.venv/bin/sigmoid-l2 trace
	@echo
	.venv/bin/python bench/throughput.py

test: .venv/.test
	.venv/bin/python -m pytest tests

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf build/typed
	$(PIP) install --no-deps --target build/typed .
	MYPYPATH=build/typed .venv/bin/mypy

# What a user gets: the wheel and the sdist, each installed into an empty environment.
package: .venv/.dev
	.venv/bin/python tests/check_package.py

# On Linux PyPI's torch comes with gigabytes of CUDA, which these benchmarks do not use. Its CPU-only build:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make bench
bench: .venv/.bench
	mkdir -p build
	.venv/bin/python -m pytest bench --benchmark-json=build/bench.json
	.venv/bin/python bench/report.py build/bench.json
	.venv/bin/python bench/bench_peers.py

# compute-sanitizer comes with the CUDA toolkit. build/gpu is on the path, so that PYTHON's environment is left alone.
GPU_RUN = PYTHONPATH=build/gpu $(PYTHON)
GPU_SHORT = bench/throughput.py --repeats 1 --batch 1000
ifeq ($(PYTHON),.venv/bin/python)
gpu: .venv/.test .venv/.bench
endif
gpu:
	rm -rf build/gpu && mkdir -p build
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --target build/gpu .
	$(GPU_RUN) -m sigmoid_l2 info
	$(GPU_RUN) -c "import sigmoid_l2 as s; exit(not all(b.available for b in s.backends()) and 'a backend is missing')"
	SIGMOID_L2_TEST_BACKENDS=cupy,numba-cuda $(GPU_RUN) -m pytest tests/test_parity.py tests/test_same_bits.py tests/test_cuda_arrays.py
	for backend in cupy numba-cuda; do for tool in memcheck racecheck; do for shape in "3 3" "40 50"; do \
	    PYTHONPATH=build/gpu compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(PYTHON) $(GPU_SHORT) --backend $$backend --shape $$shape || exit 1; \
	done; done; done
	$(GPU_RUN) -m pytest bench --benchmark-json=build/bench_gpu.json
	$(GPU_RUN) bench/report.py build/bench_gpu.json

.venv/bin/python:
	python3 -m venv .venv

# The stamps make a second `make` start at once; a changed pyproject.toml installs anew.
.venv/.run: pyproject.toml | .venv/bin/python
	$(PIP) install -e .
	touch $@

.venv/.test .venv/.dev .venv/.bench: .venv/.%: pyproject.toml | .venv/bin/python
	$(PIP) install -e '.[$*]'
	touch $@ .venv/.run

clean:
	rm -rf .venv build dist
