"""A million 3x3 pairs in one call: the loss, dW and dx of each, and a check of one of them by finite differences."""

import time

import numpy as np

import sigmoid_l2 as sl2

B, m, n = 1_000_000, 3, 3
rng = np.random.default_rng(0)
W = rng.standard_normal((B, m, n), dtype=np.float32)
x = rng.standard_normal((B, n), dtype=np.float32)

sl2.warmup((m, n), "float32")  # compiles the kernel, so that the call below does not wait for it
start = time.perf_counter()
loss, dW, dx = sl2.value_and_grad(W, x)
seconds = time.perf_counter() - start

for name, a in {"W": W, "x": x, "loss": loss, "dW": dW, "dx": dx}.items():
    print(f"{name:<5}{a.shape!s:<16}{a.dtype}")
print(f"{B:,} pairs in {1000 * seconds:.0f} ms; mean loss {loss.mean(dtype=float):.4f}, of at most {m}\n")

# Pair 7 in float64: central differences of the loss in each x_j.
h, W7, x7 = 1e-6, W[7].astype(float), x[7].astype(float)
steps = h * np.eye(n)  # one row for each x_j
difference = [(sl2.value(W7, x7 + e) - sl2.value(W7, x7 - e)) / (2 * h) for e in steps]
print("dx of pair 7:          ", dx[7])
print("by central differences:", np.array(difference, np.float32))

# Each gradient has the shape of its input, so a step of gradient descent is one line for the whole batch.
for _ in range(10):
    W -= sl2.grad(W, x).dW
print(f"\nmean loss after 10 steps of gradient descent: {sl2.value(W, x).mean(dtype=float):.4f}")
