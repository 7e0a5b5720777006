"""Turn a JSON of pytest-benchmark's into a Markdown table on stdout and a picture (PNG) beside the JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEAD = ("backend", "dtype", "shape", "pairs", "median", "GB/s", "copy GB/s", "fraction of the copy")


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of a result file, with the median seconds of each."""
    return [bench["extra_info"] | {"median": bench["stats"]["median"]} for bench in results["benchmarks"]]


def table(results: dict[str, Any]) -> str:
    """All cases as a Markdown table, under a line with machine, date and versions."""
    machine = results["machine_info"]
    cpu = machine.get("cpu", {})
    lines = [
        f"{cpu.get('brand_raw', machine['machine'])}, {cpu.get('count', '?')} threads, "
        f"Python {machine['python_version']}, {results['datetime'][:10]}",
        "",
        f"| {' | '.join(HEAD)} |",
        "|" + " --- |" * 4 + " ---: |" * 4,
    ]
    lines += [
        f"| {r['backend']} | {r['dtype']} | {r['m']}x{r['n']} | {r['B']:,} | {r['median'] * 1e3:.3f} ms "
        f"| {r['gb_per_s']:.2f} | {r['copy_gb_per_s']:.1f} | {r['fraction_of_copy']:.2f} |"
        for r in rows(results)
    ]
    return "\n".join(lines)


def picture(results: dict[str, Any], path: Path) -> None:
    """The fraction of a plain copy's speed, a group of bars for each shape and batch, a bar for each backend."""
    data = rows(results)
    series = sorted({(r["backend"], r["dtype"]) for r in data})
    cases = sorted({(r["m"], r["n"], r["B"]) for r in data}, key=lambda case: (case[0] * case[1], case[2]))
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(series)
    for k, (backend, dtype) in enumerate(series):
        own = [r for r in data if (r["backend"], r["dtype"]) == (backend, dtype)]
        heights = {(r["m"], r["n"], r["B"]): r["fraction_of_copy"] for r in own}
        positions = [i + (k - (len(series) - 1) / 2) * width for i in range(len(cases))]
        axes.bar(positions, [heights.get(case, 0) for case in cases], width, label=f"{backend}, {dtype}")
    axes.set_xticks(range(len(cases)), [f"{m}x{n}\n{B:,} pairs" for m, n, B in cases])
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--", label="plain copy of the same bytes")
    axes.set_ylabel("fraction of the copy's speed")
    axes.set_title("value_and_grad, outputs given")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Print the table and draw the picture of one result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="written by pytest bench --benchmark-json=...")
    path = parser.parse_args().json
    results = json.loads(path.read_text(encoding="utf-8"))
    print(table(results))
    picture(results, path.with_suffix(".png"))
    print(f"\npicture: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
