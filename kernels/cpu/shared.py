"""One W for many x, on all cores: dW is the sum over the batch.

The batch is cut into units by the shapes alone. A thread has a range of them. Each unit leaves a sum of dW, and these
are added in their order, so that the bits of dW do not depend on the number of threads. Those of a sample's loss, dx
and dq depend on nothing but the sample.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import shared_blocks, shared_large, shared_panels, shared_tiny
from sigmoid_l2.kernels.cpu.compile import entry_point
from sigmoid_l2.kernels.cpu.shared_product import allowed_roundings, chains_of_panel, roundings_of_chains
from sigmoid_l2.kernels.cpu.shared_sums import sums_kernel
from sigmoid_l2.kernels.cpu.simd import lane_count
from sigmoid_l2.settings import get_streaming_threshold

# Size of the largest tiny W, in elements: its code, with the time to compile it, grows with them.
TINY = 64
# Size of a unit, in samples, at least, and the number of units, at most, where they are not larger than MOST_TERMS.
UNIT, UNITS = 1 << 10, 64
# Sums that a unit adds with their errors, at most: the errors of the errors grow with the square of the number.
MOST_TERMS = 1 << 13
# Samples of a block, and the most memory of a block, in bytes.
BLOCK_ROWS, BLOCK_BYTES = 96, 1 << 20
# Size of the smallest W, in elements, whose work is always cut by its rows and columns: packed twice, as blocks need
# it, it would fill the second cache.
LARGE = 1 << 18
# Size of the largest W, in elements, whose work is never cut by its rows and columns, how few the samples may be: so
# cut, 256x256 with 32 and 2000 samples would take twice and 1.4 times as long, with 512 only 0.8 times; 384x384 with 64
# and with 1024 takes 0.6 times as long.
SMALL = 1 << 17
# What the blocks of a call allocate, at most, in bytes, where a row of x has up to 512 KiB: a tile has 12 of them.
MOST_BYTES = 40 << 20


class Arrays(NamedTuple):
    """The arrays of a call but W and dW; all but x may be None."""

    x: Any
    target: Any
    cotangent: Any
    loss: Any
    dx: Any
    dq: Any

    def part(self, first: int, last: int) -> "Arrays":
        """The samples first..last."""
        return Arrays(*(None if a is None else a[first:last] for a in self))


def shared(
    W: Any,
    x: Any,
    target: Any,
    cotangent: Any,
    loss: Any,
    dW: Any,
    dx: Any,
    dq: Any,
    *,
    stream: int | None = None,
    call_bytes: int = 0,
) -> None:
    """Compute the outputs that are wanted, for W (m, n) and x (B, n); dW (m, n) is a sum over the batch."""
    arrays = Arrays(x, target, cotangent, loss, dx, dq)
    written = call_bytes or sum(a.nbytes for a in arrays[3:] if a is not None)
    streams = written >= get_streaming_threshold()
    if W.size <= TINY:
        _tiny(W, arrays, dW, streams)
        return
    few = len(x) <= UNIT and W.size > SMALL
    if few or W.size >= LARGE:
        shared_large.compute(W, arrays, dW)
    else:
        _blocks(W, arrays, dW, streams)


def _unit(B: int, multiple: int, most: int) -> int:
    """How many samples a unit has: of the shapes alone, because the order of the sums must be."""
    size = min(max(UNIT, -(-B // UNITS)), most)
    return -(-size // multiple) * multiple


def _waves(units: int, count: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``count`` units."""
    for first in range(0, units, count):
        yield first, min(first + count, units)


def _tiny(W: Any, arrays: Arrays, dW: Any, streams: bool) -> None:
    m, n = W.shape
    lanes, B, dtype = lane_count(W.dtype), len(arrays.x), W.dtype
    run = entry_point(shared_tiny.kernel(m, n, dtype, Given(arrays.target is not None, arrays.cotangent is not None)))
    chain = lanes * shared_tiny.CHAIN
    unit = _unit(B, chain, MOST_TERMS * chain)
    units = -(-B // unit)
    sums = np.empty((units if dW is not None else 1, 2 * m * n), dtype)

    def run_range(first: int, last: int) -> None:
        run(W, *arrays, sums.reshape(-1), dW is not None, first, last, unit, streams)

    threads.for_ranges(units, B * W.size, run_range)
    if dW is not None:
        totals = np.zeros(2 * m * n, dtype)
        entry_point(sums_kernel(dtype))(sums, units, totals, 0, 1, m * n, True)
        dW[...] = totals[: m * n].reshape(m, n)


def _blocks(W: Any, arrays: Arrays, dW: Any, streams: bool) -> None:
    """Blocks of samples, each for all of W."""
    m, n = W.shape
    B, dtype = len(arrays.x), W.dtype
    m_vectors, n_vectors, rows, _ = shape = shared_panels.tile_shape(m, n, dtype)
    lanes, of_tile = lane_count(dtype), shared_panels.rows_of_tile()
    m_panel, n_panel = m_vectors * lanes, n_vectors * lanes
    m_panels, n_panels, m_tiles = -(-m // m_panel), -(-n // n_panel), -(-m // rows)
    given = Given(arrays.target is not None, arrays.cotangent is not None)
    run = entry_point(shared_blocks.kernel(*shape, dtype, given))
    sample_size = 2 * n_panels * n_panel + m_panels * m_panel
    block = max(min(BLOCK_ROWS, BLOCK_BYTES // (sample_size * dtype.itemsize)) // of_tile, 1) * of_tile
    unit = _unit(B, block, MOST_TERMS * block)
    units = -(-B // unit)
    tile, tiles = rows * n_panel, n_panels * m_tiles if dW is not None else 0
    room = -(-(2 * tile * tiles + block * sample_size) // lanes) * lanes
    packed = _packed(W, n_panel), _packed(W.T, m_panel)
    totals = np.zeros(2 * tile * tiles, dtype)
    allocated = sum(a.nbytes for a in (*packed, totals))
    wave = min(units, max(1, (MOST_BYTES - allocated) // (room * dtype.itemsize)))
    memory = shared_panels.aligned(wave * room, dtype).reshape(wave, room)
    chains = chains_of_panel(m, m_panel, shared_panels.TREE_ROWS), _chain_of_sums(B, block)
    for first, last in _waves(units, wave):
        part = arrays.part(first * unit, last * unit)

        def run_range(begin: int, end: int, first: int = first, part: Arrays = part) -> None:
            run(
                *packed,
                *part,
                memory,
                dW is not None,
                m,
                begin,
                end,
                unit,
                block,
                *chains,
                streams,
            )

        def add(begin: int, end: int, count: int = last - first, is_last: bool = last == units) -> None:
            entry_point(sums_kernel(dtype))(memory, count, totals, begin, end, tile, is_last)

        threads.for_ranges(last - first, len(part.x) * W.size, run_range)
        if dW is not None:
            threads.for_ranges(tiles, (last - first) * W.size, add)
    if dW is not None:
        sums = totals.reshape(n_panels, m_tiles, 2, rows, n_panel)[:, :, 0].transpose(1, 2, 0, 3)
        dW[...] = sums.reshape(m_tiles * rows, n_panels * n_panel)[:m, :n]


def _packed(W: Any, width: int) -> Any:
    """W's panels of ``width`` columns, with zeros after the last column."""
    m, n = W.shape
    panels = -(-n // width)
    packed = shared_panels.aligned(panels * m * width, W.dtype).reshape(panels, m, width)
    whole = n // width
    packed[:whole] = W[:, : whole * width].reshape(m, whole, width).transpose(1, 0, 2)
    if whole < panels:
        packed[whole] = 0
        packed[whole, :, : n - whole * width] = W[:, whole * width :]
    return packed.reshape(-1)


@lru_cache
def _chain_of_sums(B: int, block: int) -> int:
    """How many samples a chain of dW has: as many as the contract allows, with two roundings of units and of all."""
    terms = min(B, block)
    return max(k for k in range(1, terms + 1) if k == 1 or roundings_of_chains(terms, k) + 2 <= allowed_roundings(B))
