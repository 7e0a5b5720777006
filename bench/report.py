"""The tables, the targets and the pictures of a file of results.

python bench/report.py FILE.json

FILE is of bench_cpu, bench_gpu or pytest-benchmark. Exits with 10 if a target is missed. The pictures are drawn last,
so that a limit of time cannot cost the tables.
"""

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from gpu_steps import MISSED
from results import GPU_LIBRARIES, Row, caption, fraction, is_copy, is_ours, label, load, name, same_case, write
from targets import fastest_peer, launches, small_time, targets

# --- tables in Markdown, each from the rows of some parts of a benchmark ---------------------------------------------


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]], words: int = 1) -> str:
    """A table; its first ``words`` columns are words, the others figures."""
    head = list(head)
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def duration(seconds: float | None) -> str:
    """Three digits, with the unit that fits."""
    if seconds is None:
        return "-"
    scale, unit = next((su for su in ((1, "s"), (1e-3, "ms")) if seconds >= su[0]), (1e-6, "µs"))
    return f"{seconds / scale:.3g} {unit}"


def times(rows: list[Row], quantity: str = "median time") -> str:
    """A line for each contender, a column for each case: the median time or the GB/s, the fastest bold."""
    one_shape = len({(row["m"], row["n"], row["dtype"]) for row in rows}) == 1
    cases = {label(r): f"B = {r['B']:,}" if one_shape else label(r) for r in sorted(rows, key=lambda r: r["bytes"])}
    cells: dict[str, dict[str, str]] = {name(row): {} for row in rows}
    for row in rows:
        if "median" not in row:
            continue
        fastest = min(r["median"] for r in same_case(rows, row) if not is_copy(r))
        cell = duration(row["median"]) if quantity == "median time" else f"{row['gb_per_s']:.3g}"
        cells[name(row)][label(row)] = f"**{cell}**" if row["median"] == fastest else cell
    lines = [[who, *(line.get(case, "-") for case in cases)] for who, line in cells.items()]
    return markdown([quantity, *cases.values()], lines)


def speeds(rows: list[Row]) -> str:
    """The same in GB/s."""
    return times(rows, "GB/s of the least traffic")


def losses(rows: list[Row]) -> str:
    """Every case in which a peer is faster than ours; ours with fresh outputs against peers with fresh outputs."""
    lost = []
    for row in filter(is_ours, rows):
        others = [r for r in same_case(rows, row) if not is_ours(r) and not is_copy(r)]
        others = [r for r in others if row["outputs"] == "given" or r["outputs"] == "fresh"]
        fastest = min(others, key=lambda r: r["median"], default=row)
        if "median" in row and fastest["median"] < row["median"]:
            ours, theirs = duration(row["median"]), duration(fastest["median"])
            lost.append(f"- {label(row)}: {name(fastest)} {theirs}, {name(row)} {ours}")
    return "Cases that we lose:" + ("\n\n" + "\n".join(lost) if lost else " none of these.")


def beside_copy(rows: list[Row]) -> str:
    """A line for each row of ours: its time, and its speed beside the plain copy's."""
    ours = [row for row in rows if is_ours(row) and "median" in row]
    figures = {
        "median": lambda row: duration(row["median"]),
        "p20 to p80": lambda row: f"{duration(row['p20'])} to {duration(row['p80'])}",
        "GB/s": lambda row: f"{row['gb_per_s']:,.1f}",
        "copy": lambda row: f"{row['gb_per_s'] / fraction(rows, row):,.1f}",
    }
    words = {"case": label}
    if len({row["contender"] for row in ours}) > 1:
        words["backend"] = lambda row: row["contender"]
    if any("class" in row for row in ours):
        words["class"] = lambda row: row["class"]
    if any(row.get("threads") for row in ours):
        figures = {"threads": lambda row: str(row["threads"])} | figures
        figures["copy on 1 thread"] = lambda row: f"{row['gb_per_s'] / fraction(rows, row, threads=1):.1f}"
    figures["fraction of the copy"] = lambda row: f"{fraction(rows, row):.2f}"
    columns = words | figures
    return markdown(columns, [[cell(row) for cell in columns.values()] for row in ours], words=len(words))


def small_calls(rows: list[Row]) -> str:
    """A line for each backend and batch of small calls on a GPU."""
    lines = []
    for call in (row for row in rows if row["what"] == "call" and "median" in row):
        empty, graph = (small_time(rows, call, what) for what in ("empty kernel", "graph"))
        ratio = f"{launches(rows, call):.2f}" if empty else "-"
        lines.append([call["contender"], label(call), *map(duration, (call["median"], empty)), ratio, duration(graph)])
    head = ("backend", "case", "call", "empty kernel", "call / empty kernel", "launch of a graph of the call")
    return markdown(head, lines, words=2)


def notes(rows: list[Row]) -> str:
    """Who was not measured in which cases, and why; and which times of a GPU are doubtful."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        what = f", {row['what']}" if "what" in row else ""
        if "reason" in row:
            cases.setdefault(f"{row['reason']}: {name(row)}{what} not measured: ", []).append(label(row))
        if row.get("held_up"):
            rounds = f"in {row['held_up']} of {row['rounds']} rounds the device waited for the host"
            cases.setdefault(f"{row['contender']}, {rounds}: ", []).append(label(row))
    return "\n".join(f"- {what}{'; '.join(own)}" for what, own in cases.items())


def judged(targets: list[Row]) -> str:
    """The targets, and how many are missed."""

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        (t["case"], t["unit"], f"{t['must']:g}", figure(t["goal"], "g"), figure(t["measured"], ".2f"), t["result"])
        for t in targets
    ]
    musts, goals = sum(not t["met"] for t in targets), sum("goal missed" in t["result"] for t in targets)
    table = markdown(("case", "unit", "must", "goal", "measured", "result"), lines, words=2)
    return f"{table}\n\n{len(targets)} targets: {musts} musts not met, {goals} goals missed."


# --- what is printed ------------------------------------------------------------------------------------------------


def sections(results: Row) -> list[str]:
    """Everything in Markdown: for each part that was measured a title and its tables."""
    parts: dict[str, list[Row]] = {}
    for row in results["rows"]:
        parts.setdefault(row["part"], []).append(row)
    if "backends" in parts:  # of pytest-benchmark
        python = results["machine_info"]["python_version"]
        return [f"{caption(results)}; Python {python}", beside_copy(parts["backends"])]
    told = sections_of_gpu(results, parts) if "gpu" in results["machine"] else sections_of_cpu(results, parts)
    return [*told, "## Targets", judged(results["targets"])]


def sections_of_gpu(results: Row, parts: dict[str, list[Row]]) -> list[str]:
    """Those of bench_gpu, whose file may have only some of the parts."""
    machine = {**results["machine"]}
    versions = ", ".join(f"{name} {v}" for name, v in machine.pop("versions").items())
    told = [results["date"] + "; " + ", ".join(f"{k} {v}" for k, v in machine.items()) + f"; {versions}"]
    for part, title, tables in (
        ("shapes", "Beside a device-to-device copy of the same bytes, outputs given; device time", (beside_copy,)),
        ("few", "Few pairs beside such a copy, launches included", (beside_copy,)),
        ("small", "A small call, outputs given; the host's time, nobody waiting for the device", (small_calls,)),
        ("peers", "Peers; wall time of a call and the wait for the device", (times, speeds)),
    ):
        if part in parts:
            told += [f"## {title}", *(table(parts[part]) for table in tables)]
    return [*told, notes(results["rows"])]


def sections_of_cpu(results: Row, parts: dict[str, list[Row]]) -> list[str]:
    """Those of bench_cpu."""
    versions = ", ".join(f"{library} {v}" for library, v in sorted(results["versions"].items()))
    remarks = "\n".join(f"- {who}: {note}." for who, note in results["notes"].items())
    return [
        f"{caption(results)}; Python {results['machine']['python']}, {versions}",
        "## 3x3 float32 over the batch, outputs given where the contender takes them",
        times(parts["batch"]),
        speeds(parts["batch"]),
        "\n".join(filter(None, (remarks, notes(parts["batch"])))),
        losses(parts["batch"]),
        "## 3x3 float32, fresh outputs",
        times(parts["fresh"]),
        notes(parts["fresh"]),
        losses(parts["fresh"]),
        "## One 3x3 float32 pair without a batch axis, and small batches, beside the formula by hand",
        times(parts["pair"]),
        times(parts["small"]),
        losses(parts["pair"] + parts["small"]),
        "## Ours beside a plain copy of the same bytes, outputs given",
        beside_copy(parts["shapes"]),
        "## The same over threads",
        beside_copy(parts["threads"]),
    ]


def for_readme(results: Row) -> list[str]:
    """The sentences that one would paste for a GPU: what was measured, on what, with what, when."""
    rows, versions = results["rows"], results["machine"]["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in GPU_LIBRARIES if name in versions)
    told = ["## For the README", f"Measured with outputs given; {caption(results)}, {used}."]
    for row in (row for row in rows if is_ours(row) and "median" in row):
        if row["part"] == "small" and row["what"] == "call" and (ratio := launches(rows, row)):
            empty = f"{ratio:.2f} times the launch of an empty kernel"
            told.append(f"{row['contender']}: {label(row)} takes the host {duration(row['median'])}, {empty}.")
        if row["part"] == "peers" and (fastest := fastest_peer(rows, row)):
            ratio = fastest["median"] / row["median"]
            told.append(f"{row['contender']}: {label(row)}, {ratio:.1f} times as fast as {fastest['contender']}.")
    return told


def report(path: Path) -> bool:
    """Print, draw, and for a GPU, whose file has grown, judge anew; whether every must is met."""
    results = load(path)
    on_gpu = "gpu" in results.get("machine", ())
    if on_gpu:
        results["rows"].sort(key=lambda row: (row["m"] * row["n"], row["m"], row["dtype"]))
        results["targets"] = targets(results["rows"])
        write(results, path)
    draws = find_spec("matplotlib") is not None
    print(f"results: {path}{'' if draws else '; no picture: matplotlib is not installed'}\n")
    print("\n\n".join(filter(None, sections(results) + (for_readme(results) if on_gpu else []))), flush=True)
    if draws:
        try:
            import pictures

            pictures.draw(results, path)
        except Exception as error:  # the tables are worth more
            print(f"no picture: {error}", file=sys.stderr)
    return all(target["met"] for target in results.get("targets", ()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="a file of bench_cpu.py, bench_gpu.py or pytest bench")
    sys.exit(0 if report(parser.parse_args().json) else MISSED)


if __name__ == "__main__":
    main()
