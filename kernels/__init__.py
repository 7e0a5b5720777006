"""The mathematics: reference, cpu.launch, gpu.launch_cupy and gpu.launch_numba have the same function ``fused``.

The contract of a kernel, ``fused(W, x, loss, dW, dx, *, stream=None)``:

* ``W (B, m, n)``, ``x (B, n)``, ``loss (B,)``, ``dW (B, m, n)``, ``dx (B, n)``: C-contiguous, native byte order,
  aligned, one dtype, B, m, n >= 1, no output sharing memory with anything else, already validated;
* an output that is None is not wanted and not computed; every element of the others is written, and on a GPU exactly
  once, except where a block adds the slices of a pair to its loss and dx one after the other;
* no input is changed, nothing but the outputs is written, nothing of batch size is allocated, nothing waits for a GPU;
* sizes are 64-bit: B * m * n may pass 2**31; on a GPU m and n are below 2**32, else ValueError;
* a pair's result depends on that pair alone, to the last bit;
* ``stream`` is the integer handle of a CUDA stream, None for the default stream; CPU kernels ignore it.
"""

from typing import Any, NamedTuple


class Wanted(NamedTuple):
    """Which outputs a call wants; a kernel neither computes nor touches the others."""

    loss: bool
    dW: bool
    dx: bool

    @classmethod
    def of(cls, loss: Any, dW: Any, dx: Any) -> "Wanted":
        """Those that are not None."""
        return cls(loss is not None, dW is not None, dx is not None)
