"""The mathematics: reference, cpu.launch, gpu.launch_cupy and gpu.launch_numba have the same function ``fused``.

The contract of a kernel, ``fused(W, x, target, cotangent, loss, dW, dx, dq, *, stream=None, call_bytes=0)``:

* ``W (B, m, n)``, ``x (B, n)``, ``target (B, m)``, ``cotangent (B,)``, ``loss (B,)``, ``dW (B, m, n)``, ``dx (B, n)``,
  ``dq (B, m)``: C-contiguous, native byte order, aligned, one dtype, B, m, n >= 1, no output sharing memory with
  anything else, already validated;
* a target that is None is 0, a cotangent that is None is 1; without them a kernel does nothing for them, and its
  results have the bits that they would have if it knew of neither;
* the gradients are those of sum(cotangent * loss); the loss is not multiplied;
* an output that is None is not wanted and not computed; every element of the others is written, and on a GPU exactly
  once, except where a block adds the slices of a pair to its loss and dx one after the other;
* no input is changed, nothing but the outputs is written, nothing of batch size is allocated, nothing waits for a GPU;
* sizes are 64-bit: B * m * n may pass 2**31; on a GPU m and n are below 2**32, else ValueError;
* a pair's result depends on that pair alone, to the last bit, and not on what else is wanted;
* ``stream`` is the integer handle of a CUDA stream, None for the default stream; CPU kernels ignore it;
* ``call_bytes`` is what the call writes in all, where these pairs are a piece of it: whether that is more than the
  caches hold. GPU kernels ignore it.

A module may also have ``shared``, with the same arguments, for pairs that all have one W (m, n); where it does not take
every W, ``has_shared(m, n, itemsize)`` says which. dW (m, n) is the sum over the pairs, in an order that depends on the
shapes and the dtype alone. The bits of a pair's loss, dx and dq do not depend on the other pairs, but need not be those
of ``fused``. On a GPU the sums go through the workspace that each thread keeps for each stream.

And it may have ``batch_last``, with the same arguments but the pairs last, ``W (m, n, B)``, ``x (n, B)``, ``target (m,
B)``, ``cotangent (B,)``, ``loss (B,)``, ``dW (m, n, B)``, ``dx (n, B)``, ``dq (m, B)``; ``has_batch_last(m, n,
itemsize)`` says for which pairs, where it does not take all. Neighbours along the last axis are neighbours in memory
(an axis of length 1 may have any stride). The strides of the others are any whole numbers of elements, of inputs also 0
and of both also negative: so both orders (m, n, B) and (n, m, B), and some pairs of a larger array, are used in place.
All else is as for ``fused``: a pair's bits depend on that pair alone, not on B, the strides or the alignment. But they
need not be those of ``fused``.
"""

from typing import Any, NamedTuple


class Given(NamedTuple):
    """Which inputs a call has besides W and x; a kernel without one is compiled as if there were none."""

    target: bool
    cotangent: bool


class Wanted(NamedTuple):
    """Which outputs a call wants; a kernel neither computes nor touches the others."""

    loss: bool
    dW: bool
    dx: bool
    dq: bool

    @classmethod
    def of(cls, *outputs: Any) -> "Wanted":
        """Those that are not None."""
        return cls(*(a is not None for a in outputs))
