"""The same arrays for the results of every call, with out=: nothing of batch size is allocated."""

import timeit
import tracemalloc

import numpy as np

import sigmoid_l2 as sl2

B, m, n = 1_000_000, 3, 3
rng = np.random.default_rng(0)
W = rng.standard_normal((B, m, n), dtype=np.float32)
x = rng.standard_normal((B, n), dtype=np.float32)
out = np.empty(B, np.float32), np.empty_like(W), np.empty_like(x)  # loss, dW, dx


def measure(what, call):
    """Print the shortest of ten calls after a first one, and what one call allocates."""
    call()
    seconds = min(timeit.repeat(call, number=1, repeat=10))
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{what}: {1000 * seconds:5.1f} ms a call, {peak / 1e6:5.1f} MB allocated in it")


sl2.set_kept_memory_limit(0)
measure("new arrays, in new memory            ", lambda: sl2.value_and_grad(W, x))
sl2.set_kept_memory_limit(None)  # the default: results of 32 MiB and more use the memory of earlier ones
measure("new arrays, dW in memory that is kept", lambda: sl2.value_and_grad(W, x))
measure("the same arrays, out=                ", lambda: sl2.value_and_grad(W, x, out=out))

results = sl2.value_and_grad(W, x, out=out)
print("The results are the arrays that were given:", all(a is b for a, b in zip(results, out, strict=True)))

loss, dW, dx = out
try:
    sl2.value_and_grad(W, x, out=(loss, W, dx))  # dW in the place of W
except ValueError as error:
    print(f"Refused before anything is written: {error}")
