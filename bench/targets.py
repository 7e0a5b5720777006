"""The speeds that the library promises itself, each judged by the rows of one file of results."""

from collections.abc import Iterable

import fit
import layouts
import training
import wanted
from peers import JAX_MATMUL, JAX_SUM, NUMPY_EINSUM, TORCH_COMPILE_HAND, TORCH_COMPILE_VMAP, Peer
from results import Row, fraction, is_copy, is_ours, label, same_case

# CPU: part of the speed of the best copy of the least bytes on as many threads, outputs given: must, goal.
OF_COPY, BETWEEN = (0.75, 0.90), (0.65, 0.85)
# The shapes of BETWEEN: those between the sizes that suit the tiny and the rows kernel.
BETWEEN_SHAPES = ((16, 16), (20, 33), (32, 32))
# CPU: times that one pair of 8192x8192 takes of a copy of W, at most: must, goal.
HUGE = (1.3, 1.1)
# CPU: times that a call with new outputs takes, in a loop, of one with given outputs, at most: must, goal.
NEW_OUTPUTS = (1.8, 1.1)
# CPU: times that a call of one pair with given outputs takes of the fastest NumPy by hand, at most: must, goal.
GIVEN_BY_HAND = (1.0, 0.8)
# NumPy backend: times as fast as NumPy by hand with einsum: must, goal; there is a goal at 3x3.
NUMPY_BY_HAND = (1, 2)
# CPU: times as fast as the fastest of these, all with fresh outputs: must, goal.
FRESH = (
    ("torch.compile", (TORCH_COMPILE_VMAP, TORCH_COMPILE_HAND), 4, 8),
    ("JAX", (JAX_MATMUL, JAX_SUM), 4, 8),
    ("NumPy einsum", (NUMPY_EINSUM,), 10, 20),
)
# CPU: times as fast as a call with the pairs first in memory, with the pairs last: must, goal.
PAIRS_LAST = (0.9, 1)
# CPU: times as fast as the usual call, 3x3 float32, outputs given, with fewer outputs: must; the goal is their bytes'.
WANTED = {wanted.FACTORS: 1.25, wanted.DX: 1.5}
# CPU: times that a step of a fit of all models takes of the best loop by hand, at most: must.
OF_LOOP = 1
# CPU: times as fast as the fastest peer with one W for many x: must, at 3x3 and elsewhere; there is no goal.
SHARED_3X3, SHARED = 2, 1
# CPU: times as fast as a framework's own formula, forward and backward pass within it: must; there is no goal.
TRAINING = {
    training.IN_TORCH.name: (
        ("torch eager", (training.TORCH_EAGER,), 3),
        ("torch.compile", (training.TORCH_COMPILE_MATMUL, training.TORCH_COMPILE_SUM), 2),
    ),
    training.IN_JAX.name: (("JAX", (JAX_MATMUL, JAX_SUM), 3),),
}
# CPU: times as fast as the fastest NumPy by hand, for one pair and small batches, new outputs: must; there is no goal.
BY_HAND = 1
# GPU: part of the speed of a device copy of the least bytes, in every class of sizes: must, goal.
OF_DEVICE_COPY = (0.85, 0.95)
# GPU: times that a small call takes of the launch of an empty kernel through the same framework, at most.
EMPTY_LAUNCHES = 1.5
# GPU: times as fast as the fastest peer at 3x3 float32.
FASTEST_PEER = 3
# GPU: what holds of a call with outputs given.
PROMISES = {"bytes allocated": 0, "waits": 0, "graph is right": 1}


def judge(case: str, unit: str, must: float, goal: float | None, measured: float | None, at_most: bool = False) -> Row:
    """One line of the table. What was not measured is not met. ``at_most``: the less the better."""
    sign = -1 if at_most else 1
    met = measured is not None and sign * measured >= sign * must
    result = "met" if met else "MISSED" if measured is not None else "NOT MEASURED"
    if met and goal is not None:
        result = "goal met" if sign * measured >= sign * goal else "must met, goal missed"
    return {"case": case, "unit": unit, "must": must, "goal": goal, "measured": measured, "met": met, "result": result}


def targets(rows: list[Row]) -> list[Row]:
    """Every target with what was measured; a part's stand in the table once it has been measured."""
    return list(on_gpu(rows) if any("class" in row for row in rows) else on_cpu(rows))


def on_cpu(rows: list[Row]) -> Iterable[Row]:
    """The targets of a file of bench_cpu."""
    for row in filter(is_ours, rows):
        part, case, shape = row["part"], label(row), (row["m"], row["n"])
        given, others = row["outputs"] == "given", [r for r in same_case(rows, row) if not is_ours(r)]
        by_hand = [r["median"] for r in others if r["contender"].startswith("NumPy")]
        if part == "shapes":
            must, goal = BETWEEN if shape in BETWEEN_SHAPES else OF_COPY
            yield judge(case, "of the speed of the best copy", must, goal, fraction(rows, row))
        if part == "huge":
            yield judge(case, "x the time of a copy of W, at most", *HUGE, 1 / fraction(rows, row), at_most=True)
        if part == "outputs" and not given:
            with_given = next(r["median"] for r in same_case(rows, row) if is_ours(r) and r["outputs"] == "given")
            unit = "x the time with given outputs, at most"
            yield judge(f"{case}, new outputs in a loop", unit, *NEW_OUTPUTS, row["median"] / with_given, at_most=True)
        if part == "layouts" and row["outputs"] != layouts.FIRST:
            usual = next(r for r in same_case(rows, row) if r["outputs"] == layouts.FIRST)
            measured, unit = usual["median"] / row["median"], f"x as fast as {layouts.FIRST}"
            yield judge(f"{case}, {row['outputs']}", unit, *PAIRS_LAST, measured)
        if part == "wanted" and row["outputs"] in WANTED:
            usual = next(r for r in same_case(rows, row) if r["outputs"] == wanted.ALL)
            goal = round(wanted.bytes_of_pair(usual) / wanted.bytes_of_pair(row), 2)
            measured, must = usual["median"] / row["median"], WANTED[row["outputs"]]
            yield judge(f"{case}, {row['outputs']}", f"x as fast as {wanted.ALL}", must, goal, measured)
        if part == "fit" and row["B"] == fit.MODELS and row["outputs"] == fit.COTANGENT:
            unit, loop = "x the time of the best loop by hand, at most", min(r["median"] for r in others)
            yield judge(f"a step of {case}", unit, OF_LOOP, None, row["median"] / loop, at_most=True)
        if part == "shared":
            fastest = fastest_peer(rows, row)
            measured = fastest["median"] / row["median"] if fastest else None
            must = SHARED_3X3 if shape == (3, 3) else SHARED
            yield judge(f"{case}, one W", "x as fast as the fastest peer", must, None, measured)
        if part == "small" and given and row["B"] == 1:
            unit = "x the time of NumPy by hand, at most"
            measured = row["median"] / min(by_hand)
            yield judge(f"{case}, given outputs", unit, *GIVEN_BY_HAND, measured, at_most=True)
        if part in ("pair", "small") and not given:
            unit = "x as fast as NumPy by hand"
            yield judge(f"{case}, fresh outputs", unit, BY_HAND, None, min(by_hand) / row["median"])
        if part == "numpy":
            must, goal = NUMPY_BY_HAND
            unit = "x as fast as NumPy by hand with einsum"
            measured = min(by_hand) / row["median"]
            yield judge(f"{case}, NumPy backend", unit, must, goal if shape == (3, 3) else None, measured)
        if part == "fresh":
            for who, peers, must, goal in FRESH:
                yield judge(f"{case}, fresh outputs", f"x as fast as {who}", must, goal, speedup(row, others, peers))
        if part == "training":
            for who, peers, must in TRAINING[row["contender"]]:
                measured = speedup(row, others, peers) if "median" in row else None
                yield judge(f"{case}, {row['contender']}", f"x as fast as {who}", must, None, measured)


def on_gpu(rows: list[Row]) -> Iterable[Row]:
    """The targets of a file of bench_gpu, for each backend."""
    for backend in dict.fromkeys(row["contender"] for row in rows if is_ours(row)):
        own = [row for row in rows if row["contender"] == backend]
        shapes = [row for row in own if row["part"] == "shapes"]
        for class_, dtype in dict.fromkeys((row["class"], row["dtype"]) for row in shapes):
            of_class = [row for row in shapes if (row["class"], row["dtype"]) == (class_, dtype)]
            worst = min(of_class, key=lambda row: row.get("fraction_of_copy", 0))
            what = f"{backend}: {class_} {dtype}, the slowest of {len(of_class)}: {worst['m']}x{worst['n']}"
            yield judge(what, "of the device copy", *OF_DEVICE_COPY, worst.get("fraction_of_copy"))
        for row in own:
            what = f"{backend}: {label(row)}"
            if row["part"] == "promises":
                right = PROMISES[row["what"]]
                unit = f"{row['what']}, outputs given"
                yield judge(what, unit, right, None, row.get("value"), at_most=right == 0)
            if row["part"] == "small" and row["what"] == "call":
                unit = "x an empty kernel's launch, at most"
                yield judge(what, unit, EMPTY_LAUNCHES, None, launches(rows, row), at_most=True)
            if row["part"] == "peers" and (row["m"], row["n"]) == (3, 3):
                fastest = fastest_peer(rows, row)
                measured = fastest["median"] / row["median"] if fastest and "median" in row else None
                yield judge(what, "x as fast as the fastest peer", FASTEST_PEER, None, measured)


def speedup(row: Row, others: list[Row], peers: Iterable[Peer]) -> float | None:
    """How many times as fast as the fastest of ``peers``, among the ``others``, ``row`` is."""
    names = [peer.name for peer in peers]
    times = [other["median"] for other in others if other["contender"] in names]
    return min(times) / row["median"] if times else None


def fastest_peer(rows: list[Row], row: Row) -> Row | None:
    """The fastest that was measured in turn with ``row`` and is neither ours nor the copy."""
    others = [other for other in same_case(rows, row) if not is_ours(other) and not is_copy(other)]
    return min(others, key=lambda other: other["median"], default=None)


def small_time(rows: list[Row], call: Row, what: str) -> float | None:
    """The time of ``what`` that was measured in turn with a small call on a GPU."""
    same = (row for row in same_case(rows, call) if row["contender"] == call["contender"])
    return next((row["median"] for row in same if row["what"] == what), None)


def launches(rows: list[Row], call: Row) -> float | None:
    """How long a small call takes, in launches of an empty kernel."""
    empty = small_time(rows, call, "empty kernel")
    return call["median"] / empty if empty and "median" in call else None
