"""The tables, the targets and the pictures of a file of results; or several machines side by side.

python bench/report.py FILE.json [FILE.json...]

FILE is of bench_cpu, bench_gpu or pytest-benchmark. Exits with 10 if a target is missed. The pictures are drawn last,
so that a limit of time cannot cost the tables. Several files are of bench_cpu, and are shown in one table.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from gpu_steps import MISSED
from report_cpu import COPIES, sections_of_cpu, side_by_side
from report_tables import beside_copy, duration, judged, notes, small_calls, speeds, times
from results import GPU_LIBRARIES, Row, caption, is_ours, label, load, write
from targets import fastest_peer, launches, targets

TARGETS = (
    "A must has to hold, and a goal is what we hope for. Each figure is what its unit says: a part of the speed of "
    'something, or a number of times (x). Where the unit says "at most", less is better; elsewhere more is.'
)


def sections(results: Row) -> list[str]:
    """Everything in Markdown: for each part that was measured a title and its tables."""
    parts: dict[str, list[Row]] = {}
    for row in results["rows"]:
        parts.setdefault(row["part"], []).append(row)
    if "backends" in parts:  # of pytest-benchmark
        python = results["machine_info"]["python_version"]
        return [f"{caption(results)}; Python {python}", COPIES, beside_copy(parts["backends"])]
    told = sections_of_gpu(results, parts) if "gpu" in results["machine"] else sections_of_cpu(results, parts)
    return [*told, "## Targets", TARGETS, judged(results["targets"])] if results["targets"] else told


def sections_of_gpu(results: Row, parts: dict[str, list[Row]]) -> list[str]:
    """Those of bench_gpu, whose file may have only some of the parts."""
    machine = {**results["machine"]}
    versions = ", ".join(f"{name} {v}" for name, v in machine.pop("versions").items())
    told = [results["date"] + "; " + ", ".join(f"{k} {v}" for k, v in machine.items()) + f"; {versions}"]
    for part, title, tables in (
        ("shapes", "Beside a device-to-device copy of the same bytes, outputs given; device time", (beside_copy,)),
        ("few", "Few pairs beside such a copy, launches included", (beside_copy,)),
        ("shared", "One W for many x beside such a copy, launches included", (beside_copy,)),
        ("wanted", "A target and fewer outputs beside a copy of what the usual call moves", (beside_copy,)),
        ("small", "A small call, outputs given; the host's time, nobody waiting for the device", (small_calls,)),
        ("peers", "Peers; wall time of a call and the wait for the device", (times, speeds)),
    ):
        if part in parts:
            told += [f"## {title}", *(table(parts[part]) for table in tables)]
    return [*told, notes(results["rows"])]


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
    parser.add_argument("json", type=Path, nargs="+", help="a file of bench_cpu.py, bench_gpu.py or pytest bench")
    paths = parser.parse_args().json
    if len(paths) > 1:
        print(side_by_side([load(path) for path in paths]))
        return
    sys.exit(0 if report(*paths) else MISSED)


if __name__ == "__main__":
    main()
