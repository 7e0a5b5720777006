"""What ``report`` prints of bench_cpu: one file part by part, or several files side by side."""

from collections.abc import Callable
from itertools import chain
from math import log10

import fit
import layouts
import tails
import wanted
from report_tables import beside_copy, duration, losses, markdown, notes, speeds, times
from results import IN_FRAMEWORKS, STREAMED, Row, caption, fraction, is_copy, is_ours, name, same_case

COPIES = (
    "The best copy is the faster of np.copyto and a copy with streaming stores. Both take turns with the call, move as "
    "many bytes as the call must, and run on no more threads. GB/s are of these bytes."
)


def with_reader(rows: list[Row]) -> str:
    """A line for each size of the results: the times of a call alone and before a reader, for each kind of store."""
    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        B, m, n = row["B"], row["m"], row["n"]
        written = row["bytes"] * (m * n + n + 1) / (2 * m * n + 2 * n + 1)
        case = cases.setdefault(f"{m}x{n} {row['dtype']}, B = {B:,}: {written / 1e6:.0f} MB", {})
        case[row["outputs"]] = duration(row["median"])
    kinds = next(iter(cases.values()))
    return markdown(["results", *kinds], [[case, *times.values()] for case, times in cases.items()])


def by_what_is_wanted(rows: list[Row]) -> str:
    """A line for each call: its speed beside that of the usual one, and beside what the bytes alone would give."""
    usual = next(row for row in rows if row["outputs"] == wanted.ALL)
    lines = []
    for row in rows:
        moved, usually = map(wanted.bytes_of_pair, (row, usual))
        speed, expected = (f"{figure:.2f}" for figure in (usual["median"] / row["median"], usually / moved))
        lines.append([row["outputs"], str(moved), duration(row["median"]), speed, expected])
    head = ("read and written, W and x besides", "bytes a pair", "median time", f"x as fast as {wanted.ALL}")
    return markdown([*head, "by the bytes alone"], lines)


def by_layout(rows: list[Row]) -> str:
    """A line for each size of W: the time of a call by the layout, and its speed beside that of the usual one."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        usual = next(other for other in same_case(rows, row) if other["outputs"] == layouts.FIRST)
        times = lines.setdefault(f"{row['m']}x{row['n']} {row['dtype']}, B = {row['B']:,}", [])
        times.append(f"{duration(row['median'])} ({usual['median'] / row['median']:.2f})")
    head = [f"time (x as fast as {layouts.FIRST})", *layouts.ORDERS]
    return markdown(head, [[case, *times] for case, times in lines.items()])


def by_blocks(rows: list[Row]) -> str:
    """A line for each way of a step: the time of a step of all models by the models in a block, and of the loop's."""
    lines: dict[str, list[str]] = {name(row): [] for row in rows}
    for row in rows:
        loop = next(other for other in same_case(rows, row) if other["contender"] == fit.LOOP)
        lines[name(row)].append(f"{duration(row['median'])} ({row['median'] / loop['median']:.2f})")
    blocks = [f"{B:,}" for B in dict.fromkeys(row["B"] for row in rows)]
    head = ["time of a step (of the loop's), by the models in a block", *blocks]
    return markdown(head, [[who, *times] for who, times in lines.items()])


def wrong_gradients(rows: list[Row]) -> str:
    """A line for each contender, a column for each dtype and target."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        share = f"{row['wrong']:.1%}" if row["wrong"] else "none"
        lines.setdefault(row["contender"], {})[f"{row['dtype']}, target {row['target']:g}"] = share
    columns = list(next(iter(lines.values())))
    cells = [[who, *(shares.get(column, "-") for column in columns)] for who, shares in lines.items()]
    return f"{tails.COUNTED}\n\n{markdown(['wrong gradients', *columns], cells)}"


# The parts of bench_cpu in the order of the report, each with a title and its tables.
OF_CPU: dict[str, tuple[str, tuple[Callable[[list[Row]], str], ...]]] = {
    "shapes": ("Ours beside the best copy of the same bytes, outputs given", (beside_copy,)),
    "huge": ("One pair on all threads, beside a copy of W", (beside_copy,)),
    "subnormal": ("W not scaled by n^-1/2: some results are subnormal numbers", (beside_copy,)),
    "outputs": ("Outputs that are new in each call of a loop, beside given ones", (beside_copy,)),
    "layouts": ("The pairs last in memory, beside the pairs first; outputs given", (by_layout,)),
    "wanted": ("3x3 float32 with a target, and with other outputs; outputs given", (by_what_is_wanted,)),
    "fit": (
        f"Gradient descent of {fit.MODELS:,} models of {fit.M}x{fit.N} float32, {fit.STEPS} steps of a block at a time",
        (by_blocks,),
    ),
    "threads": ("Ours over threads", (beside_copy,)),
    "reader": ("A call alone, and a call and then a reader of all results, by the size of the results", (with_reader,)),
    "pair": ("One 3x3 float32 pair without a batch axis, beside the formula by hand", (times, losses)),
    "small": ("Small batches of 3x3 float32, beside the formula by hand", (times, losses)),
    "numpy": (
        "The NumPy backend on all threads, beside the formula by hand on one, outputs given",
        (times, beside_copy),
    ),
    "batch": (
        "3x3 float32 over the batch, outputs given where the contender takes them",
        (times, speeds, notes, losses),
    ),
    "fresh": ("3x3 float32, fresh outputs", (times, notes, losses)),
    "shared": (
        "One W for many x, outputs given where the contender takes them",
        (times, beside_copy, notes, losses),
    ),
    "training": (
        "The forward and the backward pass of 3x3 float32 within a framework: a step of training",
        (times, speeds, notes),
    ),
    "tails": ("The tails", (wrong_gradients,)),
}


def sections_of_cpu(results: Row, parts: dict[str, list[Row]]) -> list[str]:
    """Those of bench_cpu, whose file may have only some of the parts."""
    versions = ", ".join(f"{library} {v}" for library, v in sorted(results["versions"].items()))
    told = [f"{caption(results)}; Python {results['machine']['python']}, {versions}", COPIES]
    for part, (title, tables) in OF_CPU.items():
        if part in parts:
            told += [f"## {title}", *(table(parts[part]) for table in tables)]
    return [*told, "\n".join(f"- {who}: {note}." for who, note in results["notes"].items()) if "batch" in parts else ""]


# The parts of bench_cpu that are shown for several machines.
SIDE_BY_SIDE = ("shapes", "huge", "subnormal", "outputs", "batch", "pair", "small", "shared")


def side_by_side(machines: list[Row]) -> str:
    """Ours in several files of bench_cpu: a line for each case, three columns for each file.

    Cases whose batches are about as large share a line.
    """
    captions, lines = [], {}
    for k, results in enumerate(machines):
        rows = [row for row in results["rows"] if row["part"] in SIDE_BY_SIDE]
        alone = "" if any(row["contender"] == STREAMED for row in rows) else "; the copy is np.copyto's alone"
        captions.append(f"{k + 1}. {caption(results)}{alone}")
        for row in rows:
            if not is_ours(row) or row["contender"] in IN_FRAMEWORKS or "median" not in row:
                continue
            m, n, pairs = row["m"], row["n"], round(log10(row["B"]))
            sizes = (row["dtype"], m * n, m, pairs)
            case = row["part"], f"{m}x{n} {row['dtype']}, about 10^{pairs} pairs", row["outputs"]
            line = lines.setdefault((SIDE_BY_SIDE.index(row["part"]), *sizes, case), [["-"] * 3 for _ in machines])
            beside = any(map(is_copy, same_case(rows, row)))
            part_of_copy = f"{fraction(rows, row):.2f}" if beside else "-"
            line[k] = [duration(row["median"]), f"{row['gb_per_s']:.3g}", part_of_copy]
    figures = [f"{k + 1}: {what}" for k in range(len(machines)) for what in ("time", "GB/s", "of the copy")]
    table = [[*key[-1], *chain(*line)] for key, line in sorted(lines.items())]
    return "\n".join([*captions, "", markdown(["part", "case", "outputs", *figures], table, words=3)])
