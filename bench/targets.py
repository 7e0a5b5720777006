"""The speeds that the library promises itself, each judged by the rows of one run of ``bench_peers``."""

from peers import JAX_MATMUL, JAX_SUM, NUMPY_EINSUM, OURS, OURS_AUTO, TORCH_COMPILE_HAND, TORCH_COMPILE_VMAP
from rows import Row, fraction, label, same_case

# Of the speed of a plain copy of the least bytes on as many threads: must, goal.
SHAPE_3X3, OTHER_SHAPES = (0.60, 0.90), (0.50, 0.85)
# Times as fast as the fastest of these, all with fresh outputs: must, goal.
FRESH = (
    ("torch.compile", (TORCH_COMPILE_VMAP, TORCH_COMPILE_HAND), 4, 8),
    ("JAX", (JAX_MATMUL, JAX_SUM), 4, 8),
    ("NumPy einsum", (NUMPY_EINSUM,), 10, 20),
)
# Times as fast as the fastest NumPy by hand, for one pair and small batches: must; there is no goal.
SMALL = 1


def judge(case: str, unit: str, must: float, goal: float | None, measured: float | None, at_most: bool = False) -> Row:
    """One line of the table. What was not measured is not met. ``at_most``: the less the better."""
    sign = -1 if at_most else 1
    met = measured is not None and sign * measured >= sign * must
    result = "met" if met else "MISSED" if measured is not None else "NOT MEASURED"
    if met and goal is not None:
        result = "goal met" if sign * measured >= sign * goal else "must met, goal missed"
    return {"case": case, "unit": unit, "must": must, "goal": goal, "measured": measured, "met": met, "result": result}


def targets(rows: list[Row]) -> list[Row]:
    """Every target with what was measured."""
    table = []
    for row in rows:
        others = same_case(rows, row)
        if row["part"] == "shapes" and row["contender"] == OURS.name:
            must, goal = SHAPE_3X3 if (row["m"], row["n"]) == (3, 3) else OTHER_SHAPES
            table.append(judge(label(row), "of the copy", must, goal, fraction(rows, row)))
        if row["part"] == "fresh" and row["contender"] == OURS.name:
            for who, peers, must, goal in FRESH:
                names = [peer.name for peer in peers]
                times = [r["median"] for r in others if r["contender"] in names]
                measured = min(times) / row["median"] if times else None
                table.append(judge(f"{label(row)}, fresh outputs", f"x as fast as {who}", must, goal, measured))
        if row["part"] in ("pair", "small") and row["contender"] == OURS_AUTO.name and row["outputs"] == "fresh":
            by_hand = min(r["median"] for r in others if r["contender"].startswith("NumPy"))
            unit = "x as fast as NumPy by hand"
            table.append(judge(f"{label(row)}, fresh outputs", unit, SMALL, None, by_hand / row["median"]))
    return table
