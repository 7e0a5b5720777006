"""One large W, or few x: the phases of ``shared_phases``, for some samples at a time.

What a unit of a phase is may depend on anything, because no sum goes from one to the next: a sum over the rows or the
columns of W has the order that ``shared_panels`` says, and dW is added up samples after samples, in their order.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sigmoid_l2 import threads
from sigmoid_l2.kernels import Given
from sigmoid_l2.kernels.cpu import shared_phases
from sigmoid_l2.kernels.cpu.compile import entry_point
from sigmoid_l2.kernels.cpu.shared_panels import OTHER_ROWS, TREE_ROWS, aligned, rows_of_tile, tile_shape
from sigmoid_l2.kernels.cpu.shared_product import allowed_roundings, chains_of_panel, roundings_of_chains
from sigmoid_l2.kernels.cpu.simd import lane_count

# Samples at a time, at most, and the most memory of them, in bytes.
SAMPLES, SAMPLES_BYTES = 256, 24 << 20
# Memory of a thread, in bytes: a part of W and the sums of the tiles that need it, for the second cache.
SCRATCH_BYTES = 1 << 20
# Terms of q that are added at a time: so many rows of a panel of samples fit into the first cache. Where there are up
# to FEW samples, little is read beside W, and W is read faster in longer parts of its rows.
Q_TERMS, FEW, FEW_TERMS = 256, 32, 2048
# Rows of W that a unit of q has, or a multiple: whole tiles, and whole vectors.
Q_ROWS = 48
# Samples for each tile of rows that a unit of dW has: the tiles share the panels of x, but write to many rows.
DW_SAMPLES = 16
# Elements of W that a thread computes for a sample in the time in which it computes one for a pair with its own W.
REUSE = 16
# Elements of W whose product takes as long as g of a q.
EXP_WORK = 4


class Plan(NamedTuple):
    """How a call is cut."""

    vectors: tuple[int, int, int]  # of panels of samples, rows and columns of W
    s_panel: int  # samples of a panel
    samples: int  # at a time
    rows: int  # of panels, for them
    q_group: int
    q_terms: int
    dx_group: int
    dW_group: int
    units: tuple[int, int, int]  # of q, dx and dW
    of_sample: int  # elements of memory
    scratch: int  # elements of memory for each thread
    chains_of_panel: int  # of a sum of dx
    dW_chain: int  # samples of a chain of a sum of dW
    keeps_errors: bool  # of the sums of dW


@lru_cache
def plan(B: int, m: int, n: int, dtype: np.dtype[Any], least: int) -> Plan:
    """How a call is cut into ``least`` units a phase, or fewer."""
    lanes, of_tile = lane_count(dtype), rows_of_tile()
    m_vectors, n_vectors, _, _ = tile_shape(m, n, dtype)
    s_vectors = 1 if lanes >= B else 2
    s_panel, m_panel, n_panel = (k * lanes for k in (s_vectors, m_vectors, n_vectors))
    m_panels, n_panels = -(-m // m_panel), -(-n // n_panel)
    of_sample = -(-n // lanes) * lanes + n_panels * n_panel + m_panels * m_panel
    most = min(SAMPLES, SAMPLES_BYTES // (of_sample * dtype.itemsize))
    samples = min(-(-B // s_panel), max(1, most // s_panel)) * s_panel
    size = SCRATCH_BYTES // dtype.itemsize

    q_terms = min(FEW_TERMS if samples <= FEW else Q_TERMS, n_panels * n_panel)
    q_group = _group(-(-m // Q_ROWS), least, size // ((q_terms + samples) * Q_ROWS)) * Q_ROWS
    trees = -(-m // TREE_ROWS)
    of_dx = min(m, TREE_ROWS) * n_panel
    of_dx += ((trees - 1).bit_length() + 1) * -(-min(B, samples) // of_tile) * of_tile * n_panel
    dx_group = _group(n_panels, least, size // of_dx)
    m_tiles = -(-m // min(OTHER_ROWS[of_tile], m_panel))
    dW_group = _group(m_tiles, least, samples // DW_SAMPLES)

    blocks, terms = -(-B // samples), min(samples, B)
    chain = _chain_of_sums(B, terms, blocks - 1)
    return Plan(
        (s_vectors, m_vectors, n_vectors),
        s_panel,
        samples,
        samples + of_tile,
        q_group,
        q_terms,
        dx_group,
        dW_group,
        (-(-m // q_group), -(-n_panels // dx_group), -(-m_tiles // dW_group)),
        of_sample,
        max((q_terms + samples) * q_group, of_dx * dx_group),
        chains_of_panel(m, m_panel, TREE_ROWS),
        chain or _chain_of_sums(B, terms, 2),
        not chain,
    )


def _group(units: int, least: int, most: int) -> int:
    """How many units to take together: so that there are ``least`` of them, but at most ``most``."""
    return max(1, min(units // least, most))


def _chain_of_sums(B: int, terms: int, more: int) -> int:
    """How many samples a chain of dW has: as many as the contract allows with ``more`` roundings after their tree."""
    fit = (k for k in range(1, terms + 1) if roundings_of_chains(terms, k) + more <= allowed_roundings(B))
    return max(fit, default=0)


def compute(W: Any, arrays: Any, dW: Any) -> None:
    """All samples, some at a time."""
    m, n = W.shape
    B, dtype, count = len(arrays.x), W.dtype, min(threads.get_num_threads(), threads.MAX_THREADS)
    p = plan(B, m, n, dtype, threads.RANGES * count)
    memory = aligned(p.rows * p.of_sample, dtype)
    errors = np.empty_like(W) if p.keeps_errors and dW is not None else None
    scratch = [aligned(p.scratch, dtype) for _ in range(count)]
    for first in range(0, B, p.samples):
        end = first + p.samples
        _some(p, W, arrays.part(first, end), dW, errors, memory, scratch, first == 0, end >= B)


def _some(
    p: Plan,
    W: Any,
    arrays: Any,
    dW: Any,
    errors: Any,
    memory: Any,
    scratch: list[Any],
    is_first: bool,
    is_last: bool,
) -> None:
    """The phases for some samples."""
    (m, n), size, dtype = W.shape, len(arrays.x), W.dtype
    given = Given(arrays.target is not None, arrays.cotangent is not None)
    kernel = entry_point(shared_phases.kernel(*p.vectors, dtype, given))
    x, target, cotangent, loss, dx, dq = arrays

    def run(phase: int, begin: int, end: int, group: int = 1, step: int = 1) -> None:
        try:
            mine = scratch.pop()
        except IndexError:  # more threads have been set since
            mine = aligned(p.scratch, dtype)
        try:
            kernel(
                phase,
                W,
                x,
                target,
                cotangent,
                loss,
                dW,
                dx,
                dq,
                errors,
                memory,
                mine,
                p.rows,
                begin,
                end,
                group,
                step,
                p.chains_of_panel,
                p.dW_chain,
                is_first,
                is_last,
            )
        finally:
            scratch.append(mine)

    def pack(begin: int, end: int) -> None:
        run(shared_phases.PACK, begin, end)

    def q(begin: int, end: int) -> None:
        run(shared_phases.Q, begin, end, p.q_group, p.q_terms)

    def g(begin: int, end: int) -> None:
        run(shared_phases.G, begin, end)

    of_dx, of_dW = (0 if a is None else k for a, k in ((dx, p.units[1]), (dW, p.units[2])))

    def gradients(begin: int, end: int) -> None:
        if begin < of_dx:
            run(shared_phases.DX, begin, min(end, of_dx), p.dx_group, min(m, TREE_ROWS))
        if end > of_dx:
            run(shared_phases.DW, max(begin - of_dx, 0), end - of_dx, p.dW_group)

    threads.for_ranges(-(-size // p.s_panel), size * n, pack)
    threads.for_ranges(p.units[0], size * W.size // REUSE, q)
    threads.for_ranges(size, size * m * EXP_WORK, g)
    if of_dx + of_dW:
        threads.for_ranges(of_dx + of_dW, 2 * size * W.size // REUSE, gradients)
