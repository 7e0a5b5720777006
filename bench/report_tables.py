"""The tables of ``report`` in Markdown, each from the rows of some parts of a benchmark."""

from collections.abc import Iterable

from results import COPY, STREAMED, Row, copy_name, fraction, is_copy, is_ours, label, name, same_case
from targets import launches, small_time


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
    """A line for each row of ours: its time, and its speed beside the best copy's."""
    ours = [row for row in rows if is_ours(row) and "median" in row]
    figures = {
        "median": lambda row: duration(row["median"]),
        "p20 to p80": lambda row: f"{duration(row['p20'])} to {duration(row['p80'])}",
        "GB/s": lambda row: f"{row['gb_per_s']:,.1f}",
        "copy's GB/s": lambda row: f"{row['gb_per_s'] / fraction(rows, row):,.1f}",
        "fraction of the copy": lambda row: f"{fraction(rows, row):.2f}",
    }
    words = {"case": label}
    if len({row["contender"] for row in ours}) > 1:
        words["backend"] = lambda row: row["contender"]
    if len({row.get("outputs") for row in ours}) > 1:
        words["outputs"] = lambda row: row["outputs"]
    if any("class" in row for row in ours):
        words["class"] = lambda row: row["class"]
    if any(row.get("threads") for row in ours):
        words["the best copy"] = lambda row: copy_name(rows, row)
        figures = {"threads": lambda row: str(row["threads"] or "-")} | figures
    if any(row["contender"] == STREAMED for row in rows):
        figures["of np.copyto alone"] = lambda row: f"{fraction(rows, row, [COPY['cpu']]):.2f}"
    if any("subnormal" in row for row in ours):
        figures["subnormal dW"] = lambda row: f"{row['subnormal']['dW']:.2%}"
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
