"""The tables, the targets and the picture of a run of bench_gpu and gpu_peers; last, what a README would tell of it.

python bench/gpu_report.py FILE.json

Exits with 10 if a target is missed. The picture is drawn last, so that a limit of time cannot cost the tables.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_results import GPU_LIBRARIES, write
from gpu_steps import MISSED
from report import duration, judged, markdown
from rows import Row, caption
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
            found = (r for r in rows if r["contender"] == backend and same_peers_case(r, copy))
            own = next(found, {"reason": "not measured"})
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
    lines = []
    for row in (row for row in rows if "reason" in row):
        what = f", {row['what']}" if "what" in row else ""
        lines.append(f"- {row['contender']}, {case(row)}{what}: {row['reason']}")
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


def for_readme(results: dict[str, Any]) -> str:
    """The sentences and the table that one would want to paste: what was measured, on what, with what, when."""
    rows, versions = results["rows"], results["machine"]["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in GPU_LIBRARIES if name in versions)
    shapes = [row for row in rows if row["part"] == "shapes"]
    columns = list(dict.fromkeys((r["contender"], r["dtype"]) for r in shapes if r["contender"] in OURS))
    columns.sort(key=lambda column: (OURS.index(column[0]), column[1]))
    lines = []
    for m, n in dict.fromkeys((row["m"], row["n"]) for row in shapes):
        own = {(r["contender"], r["dtype"]): r for r in shapes if (r["m"], r["n"]) == (m, n)}
        copy = next((f"{r['gb_per_s']:,.0f}" for (who, _), r in own.items() if who == COPY), "-")
        fractions = [own.get(column, {}).get("fraction_of_copy") for column in columns]
        lines.append([f"{m}x{n}", copy, *(f"{f:.2f}" if f else "-" for f in fractions)])
    told = [f"Measured with outputs given; {caption(results)}, {used}."]
    for call in (row for row in rows if row["part"] == "small" and row["what"] == "call" and "median" in row):
        if ratio := small_ratio(rows, call):
            launches = f"{ratio:.2f} times the launch of an empty kernel"
            told.append(f"{call['contender']}: {case(call)} takes the host {duration(call['median'])}, {launches}.")
    for row in (row for row in rows if row["part"] == "peers" and row["contender"] in OURS and "median" in row):
        others = [r for r in rows if same_peers_case(r, row) and r["contender"] not in (*OURS, COPY) and "median" in r]
        if fastest := min(others, key=lambda r: r["median"], default=None):
            ratio = fastest["median"] / row["median"]
            told.append(f"{row['contender']}: {case(row)}, {ratio:.1f} times as fast as {fastest['contender']}.")
    if lines:
        told.append("Of the speed of a device copy, by the device's clock:")
        told.append(markdown(["W", "copy, GB/s", *map(", ".join, columns)], lines, words=1))
    return "\n\n".join(told)


def report(path: Path) -> bool:
    """Judge, keep the judgement in the file, print, draw; whether every must is met."""
    results = json.loads(path.read_text(encoding="utf-8"))
    results["rows"].sort(key=lambda row: (row["m"] * row["n"], row["m"], row["dtype"]))
    results["targets"] = targets(results["rows"])
    write(results, path)
    draws = find_spec("matplotlib") is not None
    print(f"results: {path}{'' if draws else '; no picture: matplotlib is not installed'}\n")
    print(tables(results))
    print(f"\n## For the README\n\n{for_readme(results)}", flush=True)
    if draws and any("fraction_of_copy" in row for row in results["rows"]):
        try:
            import pictures

            pictures.gpu(results, path)
        except Exception as error:  # the tables are worth more
            print(f"no picture: {error}", file=sys.stderr)
    return all(target["met"] for target in results["targets"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by bench_gpu.py")
    sys.exit(0 if report(parser.parse_args().json) else MISSED)


if __name__ == "__main__":
    main()
