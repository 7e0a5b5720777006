"""What the host spends on a small call of numba.cuda's kernel, without a GPU: the tests' driver launches nothing.

python bench/predict/call_cost.py      needs what the tests need and a C compiler; takes half a minute

A call with results given is compared with the launch of an empty kernel through numba.cuda, on the same arrays and
with integers alone, in turns. What the real driver takes for a launch comes on top of both. `make gpu` measures it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_void_p
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
from gpu import driver
from report_tables import markdown

import sigmoid_l2 as sl2

CALLS, ROUNDS = 500, 31  # calls of which a round has the mean, and rounds
BATCHES = 1, 1000  # pairs of 3x3 in float32


def contenders(cuda: Any, B: int) -> dict[str, Callable[[], Any]]:
    """What is timed: each function is one launch."""

    def nothing(W: Any, x: Any, loss: Any, dW: Any, dx: Any, B: Any) -> None:
        pass

    arrays = [cuda.device_array(shape, "float32") for shape in ((B, 3, 3), (B, 3), (B,), (B, 3, 3), (B, 3))]
    W, x, *out = arrays
    launch = cuda.jit(nothing)[1, 128]
    addresses = [a.device_ctypes_pointer.value for a in arrays]
    return {
        "empty kernel, arrays": lambda: launch(*arrays, B),
        "empty kernel, integers": lambda: launch(*addresses, B),
        "value_and_grad(W, x, out=...)": lambda: sl2.value_and_grad(W, x, out=out, backend="numba-cuda"),
    }


def main() -> None:
    """Time and print."""
    sys.modules["cupy"] = None  # type: ignore[assignment]  # so that numba-cuda alone takes CUDA arrays
    loaded = driver.load()
    told = CFUNCTYPE(c_int, c_char_p, c_void_p)(lambda function, stream: 0)
    launched = CFUNCTYPE(c_int, c_char_p, c_int, c_int, POINTER(c_void_p))(lambda *launch: 0)
    loaded.library.driver_connect(told, launched)
    lines = []
    for B in BATCHES:
        runs = contenders(loaded.cuda, B)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()  # compiles
        for _ in range(ROUNDS):
            for name, run in runs.items():
                begin = time.perf_counter()
                for _ in range(CALLS):
                    run()
                times[name].append((time.perf_counter() - begin) / CALLS * 1e6)
        first = statistics.median(times["empty kernel, arrays"])
        for name, taken in times.items():
            median = statistics.median(taken)
            lines.append((f"B = {B}", name, f"{median:.0f}", f"{median / first:.2f}"))
    print("Host time alone, on a driver that launches nothing\n")
    print(markdown(("batch", "what", "us", "empty launches"), lines, words=2))


if __name__ == "__main__":
    main()
