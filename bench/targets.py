"""The speeds that the library promises itself, each judged by the rows of one file of results."""

from collections.abc import Iterable

from peers import JAX_MATMUL, JAX_SUM, NUMPY_EINSUM, OURS, OURS_AUTO, TORCH_COMPILE_HAND, TORCH_COMPILE_VMAP
from results import Row, fraction, is_copy, is_ours, label, same_case

# CPU: part of the speed of a plain copy of the least bytes on as many threads: must, goal.
SHAPE_3X3, OTHER_SHAPES = (0.60, 0.90), (0.50, 0.85)
# CPU: times as fast as the fastest of these, all with fresh outputs: must, goal.
FRESH = (
    ("torch.compile", (TORCH_COMPILE_VMAP, TORCH_COMPILE_HAND), 4, 8),
    ("JAX", (JAX_MATMUL, JAX_SUM), 4, 8),
    ("NumPy einsum", (NUMPY_EINSUM,), 10, 20),
)
# CPU: times as fast as the fastest NumPy by hand, for one pair and small batches: must; there is no goal.
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
    for row in rows:
        others = same_case(rows, row)
        if row["part"] == "shapes" and row["contender"] == OURS.name:
            must, goal = SHAPE_3X3 if (row["m"], row["n"]) == (3, 3) else OTHER_SHAPES
            yield judge(label(row), "of the copy", must, goal, fraction(rows, row))
        if row["part"] == "fresh" and row["contender"] == OURS.name:
            for who, peers, must, goal in FRESH:
                names = [peer.name for peer in peers]
                times = [r["median"] for r in others if r["contender"] in names]
                measured = min(times) / row["median"] if times else None
                yield judge(f"{label(row)}, fresh outputs", f"x as fast as {who}", must, goal, measured)
        if row["part"] in ("pair", "small") and row["contender"] == OURS_AUTO.name and row["outputs"] == "fresh":
            by_hand = min(r["median"] for r in others if r["contender"].startswith("NumPy"))
            unit = "x as fast as NumPy by hand"
            yield judge(f"{label(row)}, fresh outputs", unit, BY_HAND, None, by_hand / row["median"])


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
