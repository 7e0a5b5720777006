"""The tables, the targets and the picture of a run of bench_gpu and gpu_peers.

python bench/gpu_report.py FILE.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from report import duration, judged, markdown
from rows import Row
from targets import judge

COPY = "device copy"
OURS = ("cupy", "numba-cuda")
# Of the speed of a device copy of the least bytes, in every class of sizes: must, goal.
FRACTION = (0.80, 0.95)
# A small call takes at most so many times as long as the launch of an empty kernel through the same framework.
SMALL = 1.5
# Times as fast as the fastest peer at 3x3 float32.
PEERS = 3
# With outputs given.
PROMISES = {"bytes allocated": 0, "waits": 0, "graph is right": 1}


def case(row: Row) -> str:
    """What was computed."""
    return f"{row['m']}x{row['n']} {row['dtype']}, B = {row['B']:,}"


def targets(rows: list[Row]) -> list[Row]:
    """Every target with what was measured. The peers' stand in the table once they have been measured."""
    table = []
    backends = list(dict.fromkeys(row["contender"] for row in rows if row["contender"] in OURS))
    for backend in backends:
        own = [row for row in rows if row["contender"] == backend]
        for key in dict.fromkeys((row["class"], row["dtype"]) for row in own if row["part"] == "shapes"):
            of_class = [row for row in own if row["part"] == "shapes" and (row["class"], row["dtype"]) == key]
            worst = min(of_class, key=lambda row: row.get("fraction_of_copy", 0))
            what = f"{backend}: {key[0]} {key[1]}, the slowest of {len(of_class)}: {worst['m']}x{worst['n']}"
            table.append(judge(what, "of the device copy", *FRACTION, worst.get("fraction_of_copy")))
        for row in own:
            what = f"{backend}: {case(row)}"
            if row["part"] == "promises":
                right = PROMISES[row["what"]]
                unit = f"{row['what']}, outputs given"
                table.append(judge(what, unit, right, None, row.get("value"), at_most=right == 0))
            if row["part"] == "small" and row["what"] == "call":
                unit = "x an empty kernel's launch, at most"
                table.append(judge(what, unit, SMALL, None, small_ratio(rows, row), at_most=True))
            if row["part"] == "peers" and (row["m"], row["n"]) == (3, 3):
                others = [r for r in rows if same_peers_case(r, row) and r["contender"] not in (*OURS, COPY)]
                fastest = min((r["median"] for r in others if "median" in r), default=None)
                measured = fastest / row["median"] if fastest and "median" in row else None
                table.append(judge(what, "x as fast as the fastest peer", PEERS, None, measured))
    return table


def small_ratio(rows: list[Row], call: Row) -> float | None:
    """How long a small call takes, in launches of an empty kernel."""
    empty = small_time(rows, call, "empty kernel")
    return call["median"] / empty if empty and "median" in call else None


def small_time(rows: list[Row], call: Row, what: str) -> float | None:
    """What was measured in turn with a small call."""
    keys = ("part", "contender", "m", "n", "B")
    found = (r["median"] for r in rows if all(r[k] == call[k] for k in keys) and r["what"] == what and "median" in r)
    return next(found, None)


def same_peers_case(row: Row, other: Row) -> bool:
    """Whether both were measured in turn."""
    return all(row[key] == other[key] for key in ("part", "dtype", "m", "n", "B"))


def shapes_table(rows: list[Row]) -> str:
    """A line for each shape and dtype."""
    backends = [name for name in OURS if any(row["contender"] == name for row in rows)]
    head = ["case", "class", "copy, GB/s"] + [f"{b}: {what}" for b in backends for what in ("time", "GB/s", "fraction")]
    lines = []
    for copy in (row for row in rows if row["contender"] == COPY):
        line = [case(copy), copy["class"], f"{copy['gb_per_s']:,.0f}"]
        for backend in backends:
            own = next(r for r in rows if r["contender"] == backend and same_peers_case(r, copy))
            if "reason" in own:
                line += ["-", "-", "-"]
            else:
                line += [duration(own["median"]), f"{own['gb_per_s']:,.0f}", f"{own['fraction_of_copy']:.2f}"]
        lines.append(line)
    return markdown(head, lines, words=2)


def small_table(rows: list[Row]) -> str:
    """A line for each backend and batch."""
    lines = []
    for call in (row for row in rows if row["what"] == "call" and "median" in row):
        empty, graph = (small_time(rows, call, what) for what in ("empty kernel", "graph"))
        ratio = small_ratio(rows, call)
        times = [duration(t) if t else "-" for t in (call["median"], empty, graph)]
        lines.append([call["contender"], case(call), *times[:2], f"{ratio:.2f}" if ratio else "-", times[2]])
    head = ("backend", "case", "call", "empty kernel", "call / empty kernel", "launch of a graph of the call")
    return markdown(head, lines, words=2)


def peers_table(rows: list[Row]) -> str:
    """A line for each contender, fastest first, for each case."""
    lines = []
    measured = [row for row in rows if "median" in row]
    for first in {case(row): row for row in measured}.values():
        own = sorted((r for r in measured if same_peers_case(r, first)), key=lambda r: r["median"])
        lines += [[case(r), r["contender"], duration(r["median"]), f"{r['gb_per_s']:,.0f}"] for r in own]
    return markdown(("case", "contender", "median time", "GB/s of the least traffic"), lines, words=2)


def notes(rows: list[Row]) -> str:
    """What failed, and which times are doubtful."""
    lines = [f"- {row['contender']}, {case(row)}: {row['reason']}" for row in rows if "reason" in row]
    for row in (row for row in rows if row.get("held_up")):
        rounds = f"{row['held_up']} of {row['rounds']} rounds"
        lines.append(f"- {row['contender']}, {case(row)}: in {rounds} the device waited for the host")
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> str:
    """Everything in Markdown."""
    parts: dict[str, list[Row]] = {}
    for row in results["rows"]:
        parts.setdefault(row["part"], []).append(row)
    machine = {**results["machine"]}
    versions = ", ".join(f"{name} {v}" for name, v in machine.pop("versions").items())
    sections = [results["date"] + "; " + ", ".join(f"{k} {v}" for k, v in machine.items()) + f"; {versions}"]
    for part, title, table in (
        (
            "shapes",
            "Beside a device-to-device copy of the same bytes, outputs given; device time",
            shapes_table,
        ),
        ("small", "A small call, outputs given; the host's time, nobody waiting for the device", small_table),
        ("peers", "Peers; wall time of a call and the wait for the device", peers_table),
    ):
        if part in parts:
            sections += [f"## {title}", table(parts[part])]
    sections += [notes(results["rows"]), "## Targets", judged(results["targets"])]
    return "\n\n".join(filter(None, sections))


def report(path: Path) -> bool:
    """Judge, keep the judgement in the file, print, draw; whether every must is met."""
    results = json.loads(path.read_text(encoding="utf-8"))
    results["targets"] = targets(results["rows"])
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tables(results))
    print(f"\nresults: {path}")
    try:
        import pictures
    except ImportError as error:
        print(f"no picture: {error}")
    else:
        if any("fraction_of_copy" in row for row in results["rows"]):
            print(f"picture: {pictures.gpu(results, path)[0]}")
    return all(target["met"] for target in results["targets"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by bench_gpu.py")
    report(parser.parse_args().json)


if __name__ == "__main__":
    main()
