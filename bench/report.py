"""The tables, the targets and the pictures of a file of results; for a GPU also what a README would tell of it.

python bench/report.py FILE.json

FILE is of bench_cpu, bench_gpu or pytest-benchmark. Exits with 10 if a target is missed. The pictures are drawn last,
so that a limit of time cannot cost the tables.
"""

import argparse
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu_steps import MISSED
from results import GPU_LIBRARIES, Row, caption, is_ours, label, load, write
from tables import beside_copy, beside_each_other, duration, judged, losses, notes, small_calls
from targets import fastest_peer, launches, targets

times, speeds = (partial(beside_each_other, quantity=what) for what in ("median time", "GB/s of the least traffic"))


def sections(results: Row) -> list[str]:
    """Everything in Markdown: for each part that was measured a title and its tables."""
    parts: dict[str, list[Row]] = {}
    for row in results["rows"]:
        parts.setdefault(row["part"], []).append(row)
    if "gpu" not in results.get("machine", ()):
        return sections_of_cpu(results, parts)
    machine = {**results["machine"]}
    versions = ", ".join(f"{name} {v}" for name, v in machine.pop("versions").items())
    told = [results["date"] + "; " + ", ".join(f"{k} {v}" for k, v in machine.items()) + f"; {versions}"]
    for part, title, tables in (
        ("shapes", "Beside a device-to-device copy of the same bytes, outputs given; device time", (beside_copy,)),
        ("small", "A small call, outputs given; the host's time, nobody waiting for the device", (small_calls,)),
        ("peers", "Peers; wall time of a call and the wait for the device", (times, speeds)),
    ):
        if part in parts:
            told += [f"## {title}", *(table(parts[part]) for table in tables)]
    return [*told, notes(results["rows"]), "## Targets", judged(results["targets"])]


def sections_of_cpu(results: Row, parts: dict[str, list[Row]]) -> list[str]:
    """Those of bench_cpu or of pytest-benchmark."""
    if "backends" in parts:
        python = results["machine_info"]["python_version"]
        return [f"{caption(results)}; Python {python}", beside_copy(parts["backends"])]
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
        "## Targets",
        judged(results["targets"]),
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
