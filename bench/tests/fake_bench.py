"""A stand-in for CuPy, whose device is done at once, for the GPU benchmarks.

As a program it is a Python with a GPU to gpu_check: `python bench/tests/fake_bench.py bench/PROGRAM.py ARGUMENTS`.
"""

import ctypes
import importlib
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sigmoid_l2 as sl2
from sigmoid_l2 import dispatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
NAMES = "bench_gpu gpu_calls peers results"
bench_gpu, gpu_calls, peers, results = map(importlib.import_module, NAMES.split())

value, value_and_grad = sl2.value, sl2.value_and_grad


class Array(np.ndarray):
    """A NumPy array with what the benchmarks use of CuPy's."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self):
        return np.array(self)


def nothing(*_, **__):
    pass


class Device:
    id, synchronize = 0, nothing


class Event:
    done, synchronize = False, nothing

    def record(self):
        self.time = time.perf_counter()


class Stream(nullcontext):
    ptr, synchronize = 0, nothing

    def __init__(self, non_blocking):
        super().__init__(self)
        assert non_blocking

    def begin_capture(self, mode):
        assert mode == "global"

    def end_capture(self):
        return SimpleNamespace(launch=lambda stream: Calls.last())


class MemoryHook:
    """Told of one allocation of CuPy's if ``Calls`` makes any."""

    malloc_preprocess = nothing

    def __enter__(self):
        Calls.hook = self

    def __exit__(self, *_):
        Calls.hook = MemoryHook()


class Calls:
    """The library's call in its place; ``allocates`` bytes each time, by the library of the backend."""

    last, hook = None, MemoryHook()
    allocates = 0
    wrong = 0.0

    @staticmethod
    def value(W, x, *, backend):
        return value(W, x, backend="numpy")

    @classmethod
    def value_and_grad(cls, W, x, target=None, *, wrt=("W", "x"), out=None, backend, stream=None):
        if not isinstance(W, Array):
            return value_and_grad(W, x, target, wrt=wrt, out=out, backend=backend)
        W, x, target, *given = (a if a is None else a.view(np.ndarray) for a in (W, x, target, *out))
        cls.last = lambda: value_and_grad(W, x, target, wrt=wrt, out=tuple(given), backend="numpy")
        cls.last()
        if backend == "cupy":
            out[1][...] += cls.wrong
        if cls.allocates and backend == "cupy":
            cls.hook.malloc_preprocess(device_id=0, size=cls.allocates, mem_size=512)
        if cls.allocates and backend == "numba-cuda":
            MANAGER.memalloc(cls.allocates)
        return out


def device_copy(to, source, size, kind, stream):
    assert (kind, stream) == (3, 0)
    ctypes.memmove(to, source, size)


PROPERTIES = {"name": b"NVIDIA Stand-in", "major": 9, "minor": 0, "multiProcessorCount": 1, "l2CacheSize": 100}
RUNTIME = SimpleNamespace(
    memcpyDeviceToDevice=3,
    memcpyAsync=device_copy,
    memGetInfo=lambda: (10**9, 10**9),
    getDeviceProperties=lambda number: PROPERTIES | {"totalGlobalMem": 10**9},
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    streamCaptureModeGlobal="global",
)
CUPY = SimpleNamespace(
    asarray=lambda a: np.array(a).view(Array),
    empty=lambda shape, dtype: np.empty(shape, dtype).view(Array),
    get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=nothing),
    ElementwiseKernel=lambda *_, no_return: nothing,
    **{name: getattr(np, name) for name in ("exp", "matmul", "multiply", "sum")},
    cuda=SimpleNamespace(
        Device=Device,
        Event=Event,
        MemoryHook=MemoryHook,
        Stream=Stream,
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        get_elapsed_time=lambda start, stop: (stop.time - start.time) * 1e3,
        runtime=RUNTIME,
    ),
)
MANAGER = SimpleNamespace(memalloc=nothing)
NUMBA_CUDA = SimpleNamespace(
    jit=lambda function: {(1, 128, 0): function},
    as_cuda_array=lambda a, sync: a,
    external_stream=None,
    current_context=lambda: SimpleNamespace(memory_manager=MANAGER),
)


def peer(name, build):
    return peers.Peer(name, "numpy", build, devices=("gpu",))


def install(monkeypatch):
    """The stand-in, both backends available, and cases that take milliseconds."""
    monkeypatch.setattr(dispatch.Backend, "reasons", lambda self, dtype=None: ())
    monkeypatch.setattr(sl2, "value", Calls.value)
    monkeypatch.setattr(sl2, "value_and_grad", Calls.value_and_grad)
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    monkeypatch.setattr("numba.cuda", NUMBA_CUDA, raising=False)
    for name in ("allocates", "wrong"):
        monkeypatch.setattr(Calls, name, 0)
    for name in ("LEAST_BYTES_OF_W", "PEER_BYTES_OF_W"):
        monkeypatch.setattr(bench_gpu, name, 5000)
    monkeypatch.setattr(bench_gpu, "PEERS", (peers.PEERS[-1], peer("nobody", lambda W, x, out: 1 / 0)))
    monkeypatch.setattr(bench_gpu, "SHAPES", ((3, 3), (40, 30)))
    monkeypatch.setattr(bench_gpu, "FEW_PAIRS", ((40, 30, 2),))
    monkeypatch.setattr(bench_gpu, "ROUNDS", 3)
    for name in ("SMALL_ROUNDS", "SMALL_CALLS", "AHEAD"):
        monkeypatch.setattr(gpu_calls, name, 3)
    results.gpu_machine.cache_clear()


if __name__ == "__main__":
    sys.modules["fake_bench"] = sys.modules["__main__"]
    install(pytest.MonkeyPatch())
    sys.argv = sys.argv[1:]
    importlib.import_module(Path(sys.argv[0]).stem).main()
