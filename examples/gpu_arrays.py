"""CuPy arrays in, CuPy arrays out, where there is a GPU; and host arrays with backend="gpu" on any machine."""

import numpy as np

import sigmoid_l2 as sl2

B, m, n = 100_000, 3, 3
rng = np.random.default_rng(0)
W = rng.standard_normal((B, m, n), dtype=np.float32)
x = rng.standard_normal((B, n), dtype=np.float32)

by_name = {backend.name: backend for backend in sl2.backends()}
if by_name["cupy"].available:
    import cupy

    # Arrays on the device stay there: nothing is copied, and the host does not wait for the kernel.
    loss = sl2.value(cupy.asarray(W), cupy.asarray(x))
    print(f"CuPy arrays: the loss is a {type(loss)} on {loss.device}, mean {float(loss.mean()):.4f}")
else:
    print(f"CuPy arrays cannot be shown here: {by_name['cupy'].reasons[0]}")

# "gpu" is a preference: host arrays are carried to a GPU and back in pieces, or computed on the CPU without one.
loss = sl2.value(W, x, backend="gpu")
print(f'backend="gpu": the loss is a {type(loss)}, mean {float(loss.mean()):.4f}')

# The name of a backend is an order: the call runs there, or its error has every reason and the fix.
for name in ("cupy", "numba-cuda"):
    try:
        print(f'backend="{name}": mean {sl2.value(W, x, backend=name).mean():.4f}')
    except sl2.BackendUnavailableError as error:
        print(f'backend="{name}": {type(error).__name__}: {error}')
