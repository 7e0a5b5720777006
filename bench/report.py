"""Turn a JSON of bench_peers' or of pytest-benchmark's into Markdown tables on stdout and pictures beside the JSON.

python bench/report.py FILE.json
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peers import OURS
from rows import COPY, Row, caption, copy_of, fraction, is_ours, label, name, same_case


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]], words: int = 1) -> str:
    """A table; its first ``words`` columns are words, the others figures."""
    head = list(head)
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def duration(seconds: float) -> str:
    """Three digits, with the unit that fits."""
    scale, unit = next((su for su in ((1, "s"), (1e-3, "ms")) if seconds >= su[0]), (1e-6, "µs"))
    return f"{seconds / scale:.3g} {unit}"


def over_batches(rows: list[Row], quantity: str) -> str:
    """A line for each contender, a column for each batch: the median time or the GB/s, the fastest bold."""
    batches = sorted({row["B"] for row in rows})
    cells: dict[str, dict[int, str]] = {name(row): {} for row in rows}
    for row in rows:
        if "median" not in row:
            continue
        fastest = min(r["median"] for r in same_case(rows, row) if r["contender"] != COPY)
        cell = duration(row["median"]) if quantity == "median time" else f"{row['gb_per_s']:.3g}"
        cells[name(row)][row["B"]] = f"**{cell}**" if row["median"] == fastest else cell
    lines = [[who, *(line.get(B, "-") for B in batches)] for who, line in cells.items()]
    return markdown([quantity, *(f"B = {B:,}" for B in batches)], lines)


def losses(rows: list[Row]) -> str:
    """Every case in which a peer is faster than ours; ours with fresh outputs against peers with fresh outputs."""
    lost = []
    for row in filter(is_ours, rows):
        others = [r for r in same_case(rows, row) if not is_ours(r) and r["contender"] != COPY]
        others = [r for r in others if row["outputs"] == "given" or r["outputs"] == "fresh"]
        fastest = min(others, key=lambda r: r["median"], default=row)
        if fastest["median"] < row["median"]:
            ours, theirs = duration(row["median"]), duration(fastest["median"])
            lost.append(f"- {label(row)}: {name(fastest)} {theirs}, {name(row)} {ours}")
    return "Cases that we lose:" + ("\n\n" + "\n".join(lost) if lost else " none of these.")


def gaps(rows: list[Row]) -> list[str]:
    """Who was not measured for which batches, and why."""
    batches: dict[str, list[str]] = {}
    for row in rows:
        if "reason" in row:
            batches.setdefault(f"{row['reason']}: {name(row)} not measured for B = ", []).append(f"{row['B']:,}")
    return [what + "; ".join(own) for what, own in batches.items()]


def beside_copy(rows: list[Row]) -> str:
    """Ours and the plain copy, a line for each case and number of threads."""
    head = ("case", "threads", "median", "p20 to p80", "GB/s", "copy", "copy on 1 thread", "fraction of the copy")
    lines = [
        (
            label(row),
            str(row["threads"]),
            duration(row["median"]),
            f"{duration(row['p20'])} to {duration(row['p80'])}",
            f"{row['gb_per_s']:.1f}",
            f"{copy_of(rows, row)['gb_per_s']:.1f}",
            f"{copy_of(rows, row, threads=1)['gb_per_s']:.1f}",
            f"{fraction(rows, row):.2f}",
        )
        for row in rows
        if row["contender"] == OURS.name
    ]
    return markdown(head, lines)


def judged(targets: list[Row]) -> str:
    """The targets, and how many are missed."""
    lines = [
        (
            t["case"],
            t["unit"],
            f"{t['must']:g}",
            "-" if t["goal"] is None else f"{t['goal']:g}",
            "-" if t["measured"] is None else f"{t['measured']:.2f}",
            t["result"],
        )
        for t in targets
    ]
    musts, goals = sum(not t["met"] for t in targets), sum("goal missed" in t["result"] for t in targets)
    table = markdown(("case", "unit", "must", "goal", "measured", "result"), lines, words=2)
    return f"{table}\n\n{len(targets)} targets: {musts} musts not met, {goals} goals missed."


def peers_tables(results: Row) -> str:
    """All tables of a run of bench_peers."""
    parts: dict[str, list[Row]] = {}
    for row in results["rows"]:
        parts.setdefault(row["part"], []).append(row)
    notes = [f"{who}: {note}." for who, note in results["notes"].items()]
    versions = ", ".join(f"{library} {v}" for library, v in sorted(results["versions"].items()))
    sections = (
        f"{caption(results)}; Python {results['machine']['python']}, {versions}",
        "## 3x3 float32 over the batch, outputs given where the contender takes them",
        over_batches(parts["batch"], "median time"),
        over_batches(parts["batch"], "GB/s of the least traffic"),
        "\n".join(f"- {note}" for note in notes + gaps(parts["batch"])),
        losses(parts["batch"]),
        "## 3x3 float32, fresh outputs",
        over_batches(parts["fresh"], "median time"),
        "\n".join(f"- {note}" for note in gaps(parts["fresh"])),
        losses(parts["fresh"]),
        "## One 3x3 float32 pair without a batch axis, and small batches, beside the formula by hand",
        over_batches(parts["pair"], "median time"),
        over_batches(parts["small"], "median time"),
        losses(parts["pair"] + parts["small"]),
        "## Ours beside a plain copy of the same bytes, outputs given",
        beside_copy(parts["shapes"]),
        "## The same over threads",
        beside_copy(parts["threads"]),
        "## Targets",
        judged(results["targets"]),
    )
    return "\n\n".join(filter(None, sections))


def backends_table(results: dict[str, Any]) -> str:
    """All cases of a run of pytest-benchmark."""
    head = ("backend", "dtype", "shape", "pairs", "median", "GB/s", "copy GB/s", "fraction of the copy")
    lines = []
    for bench in results["benchmarks"]:
        r, median = bench["extra_info"], bench["stats"]["median"]
        speeds = (f"{r['gb_per_s']:.2f}", f"{r['copy_gb_per_s']:.1f}", f"{r['fraction_of_copy']:.2f}")
        lines.append((r["backend"], r["dtype"], f"{r['m']}x{r['n']}", f"{r['B']:,}", duration(median), *speeds))
    return f"{caption(results)}; Python {results['machine_info']['python_version']}\n\n{markdown(head, lines, words=4)}"


def report(path: Path) -> None:
    """Print the tables and draw the pictures of one result file."""
    import pictures  # needs matplotlib, the tables do not

    results = json.loads(path.read_text(encoding="utf-8"))
    of_peers = "rows" in results
    print(peers_tables(results) if of_peers else backends_table(results))
    print()
    for picture in (pictures.peers if of_peers else pictures.backends)(results, path):
        print(f"picture: {picture}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by bench_peers.py, or by pytest bench --benchmark-json=...")
    report(parser.parse_args().json)


if __name__ == "__main__":
    main()
