"""What a call costs with a target, and with fewer outputs: the traffic says what to expect."""

import numpy as np
from results import Key, Row
from workload import LINE, OUT_AT, Run, Workload, placed

import sigmoid_l2 as sl2

# The usual call, which all others are compared with, and those of which a speed is demanded.
ALL, FACTORS, DX = "loss, dW, dx", "loss, dq, dx", "loss, dx"
# What is read and written besides W and x, and the ``wrt`` of it.
CALLS = {ALL: ("W", "x"), f"target; {ALL}": ("W", "x"), FACTORS: ("q", "x"), DX: ("x",), "loss, dW": ("W",)}


def runs(work: Workload, backend: str, key: Key) -> dict[Key, Run]:
    """Each call into given outputs, which ``key`` gets the name of; some pairs are compared with the reference."""
    case, (loss, dW, dx) = work.case, work.out
    target, dq = (placed(work.xp, (case.B, case.m), case.dtype, OUT_AT, LINE) for _ in range(2))
    target[...] = work.xp.asarray(np.arange(case.B)[:, None] % 2)

    def call(what: str, wrt: tuple[str, ...]) -> Run:
        gradients = {"W": dW, "x": dx, "q": dq}
        out = (loss, *(gradients[name] for name in wrt))
        y = target if what.startswith("target") else None

        def run() -> object:
            return sl2.value_and_grad(work.W, work.x, y, wrt=wrt, out=out, backend=backend)

        for a in out:
            a.fill(np.nan)
        some = [None if a is None else work.some_pairs(a) for a in (work.W, work.x, y)]
        right = sl2.value_and_grad(*(a if a is None else a.astype(float) for a in some), wrt=wrt, backend="numpy")
        work.compare(run(), right)
        return run

    return {key._replace(outputs=what): call(what, wrt) for what, wrt in CALLS.items()}


def bytes_of_pair(row: Row) -> int:
    """What must be read and written for one pair, by the names that ``row`` has for its outputs."""
    m, n = row["m"], row["n"]
    sizes = {"target": m, "loss": 1, "dW": m * n, "dx": n, "dq": m}
    elements = m * n + n + sum(sizes[name] for name in row["outputs"].replace(";", ",").split(", "))
    return elements * np.dtype(row["dtype"]).itemsize
