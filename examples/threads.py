"""How many threads a call uses, and many threads that call at once: the results have the same bits every time."""

import timeit
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import sigmoid_l2 as sl2

B, m, n = 1_024_000, 3, 3
rng = np.random.default_rng(0)
W = rng.standard_normal((B, m, n), dtype=np.float32)
x = rng.standard_normal((B, n), dtype=np.float32)
expected = sl2.value_and_grad(W, x)
out = tuple(np.full_like(a, np.nan) for a in expected)


def same_bits():
    return all(a.tobytes() == b.tobytes() for a, b in zip(out, expected, strict=True))


def compute(piece=slice(None)):
    sl2.value_and_grad(W[piece], x[piece], out=tuple(a[piece] for a in out))


# By default a call uses every processor that the process may run on.
default = sl2.get_num_threads()
for threads in sorted({1, default}):
    sl2.set_num_threads(threads)
    seconds = min(timeit.repeat(compute, number=1, repeat=10))
    print(f"set_num_threads({threads}): {1000 * seconds:.1f} ms a call, same bits: {same_bits()}")
sl2.set_num_threads(None)  # back to the default

# Calls from many threads need no lock. Each call here writes its own part of the results.
for a in out:
    a.fill(np.nan)
pieces = [slice(first, first + 16_000) for first in range(0, B, 16_000)]
with ThreadPoolExecutor(8) as callers:
    list(callers.map(compute, pieces))
print(f"{len(pieces)} calls from 8 threads, each on its part of the batch: same bits: {same_bits()}")
