"""Reading the rows of a run of ``bench_peers``: a dict for each contender of each case, as its JSON has them."""

from collections.abc import Iterable
from typing import Any

from peers import OURS

Row = dict[str, Any]
COPY = "np.copyto"


def same_case(rows: Iterable[Row], row: Row) -> list[Row]:
    """The rows that were measured in turn with ``row``, itself included; none that have a reason instead of a time."""
    keys = ("part", "dtype", "m", "n", "B")
    return [other for other in rows if "median" in other and all(other[key] == row[key] for key in keys)]


def copy_of(rows: Iterable[Row], row: Row, threads: int | None = None) -> Row:
    """The plain copy that was measured in turn with ``row``, on as many threads."""
    copies = [r for r in same_case(rows, row) if r["contender"] == COPY and r["outputs"] == "given"]
    return next(r for r in copies if r["threads"] == (threads or row["threads"]))


def fraction(rows: Iterable[Row], row: Row) -> float:
    """How much of the speed of the plain copy on as many threads ``row`` has."""
    return copy_of(rows, row)["median"] / row["median"]


def is_ours(row: Row) -> bool:
    """Whether it is a row of this library."""
    return row["contender"].startswith(OURS.name)


def label(row: Row) -> str:
    """What was computed."""
    pairs = "one pair" if row["part"] == "pair" else f"B = {row['B']:,}"
    return f"{row['m']}x{row['n']} {row['dtype']}, {pairs}"


def name(row: Row) -> str:
    """The contender, with what tells it from others of its name."""
    if row["contender"] == COPY:
        fresh = ", fresh output" if row["outputs"] == "fresh" else ""
        return f"{COPY}, {row['threads']} thread{'s' * (row['threads'] > 1)}{fresh}"
    return row["contender"] + (f", {row['outputs']} outputs" if is_ours(row) or row["outputs"] == "given" else "")


def caption(results: dict[str, Any]) -> str:
    """Machine and date of a run, of bench_peers or of pytest-benchmark."""
    if "machine_info" in results:
        machine, date = results["machine_info"], results["datetime"]
        cpu = machine.get("cpu", {})
        return f"{cpu.get('brand_raw', machine['machine'])}, {cpu.get('count', '?')} threads, {date[:10]}"
    machine = results["machine"]
    if "gpu" in machine:
        return f"{machine['gpu']}, driver {machine['driver']}, {results['date'][:10]}"
    memory = f", {machine['memory_gb']:.0f} GB" if "memory_gb" in machine else ""
    quick = ", quick run: few rounds" if results["quick"] else ""
    return f"{machine['cpu']}, {machine['threads']} threads{memory}, {results['date'][:10]}{quick}"
