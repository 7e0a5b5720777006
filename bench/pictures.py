"""The pictures of ``report``: PNG files beside the JSON, in colours for the colour-blind that also print in grey."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import training
from peers import PEERS
from results import Row, caption, fraction, is_copy, is_ours, name

# Okabe and Ito's colours, one for each library; the markers distinguish the contenders in grey.
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
LIBRARIES = list(dict.fromkeys(peer.library for peer in PEERS))
EVERYBODY = (*PEERS, *training.OURS)
COLOUR = {peer.name: COLOURS[LIBRARIES.index(peer.library) % len(COLOURS)] for peer in EVERYBODY}
MARKER = {peer.name: "sDP^vXd<>hp*H8"[k % 14] for k, peer in enumerate(EVERYBODY)}
COPY_STYLE: Row = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
THIN: Row = {"color": "0.88", "linewidth": 0.6}


def batch(rows: list[Row]) -> Any:
    """Throughput over the batch for all contenders, in the legend in the order of their speed at the largest batch."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault("copy" if is_copy(row) else row["contender"] + row["outputs"], []).append(row)
    copies = lines.pop("copy")
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    copy = {r["B"]: max(c["gb_per_s"] for c in copies if c["B"] == r["B"]) for r in copies}
    told = "best copy of the same bytes,\nstreamed or not, one thread or all"
    axes.plot(list(copy), list(copy.values()), label=told, **COPY_STYLE)
    for line in lines.values():
        first = line[0]
        if is_ours(first) and first["contender"] not in COLOUR:
            face = "black" if first["outputs"] == "given" else "white"
            style: Row = {"color": "black", "marker": "o", "markerfacecolor": face, "linewidth": 2.2, "zorder": 4}
        else:
            style = {"color": COLOUR[first["contender"]], "marker": MARKER[first["contender"]], "linewidth": 1.1}
            style |= {"markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.4}
        axes.plot([r["B"] for r in line], [r["gb_per_s"] for r in line], label=name(first), **style)
    axes.set(xscale="log", yscale="log", xlabel="pairs in one call, B", ylabel="GB/s of the least traffic")
    axes.set_title("loss, dW and dx of 3x3 float32 pairs", loc="left")
    axes.grid(**THIN)
    handles = sorted(axes.get_lines(), key=lambda line: [line.get_xdata()[-1], line.get_ydata()[-1]], reverse=True)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelspacing=0.8)
    return figure


def fractions(rows: list[Row]) -> Any:
    """The fraction of the best copy's speed: a group of bars for each case, a bar for each backend and dtype."""
    heights: dict[tuple[str, str], dict[tuple[int, int, int], float]] = {}  # by backend and dtype, and case
    pairs: dict[tuple[int, int, int], int] = {}
    for row in sorted(filter(is_ours, rows), key=lambda row: row["B"]):
        own = heights.setdefault((row["contender"], row["dtype"]), {})
        m, n = row["m"], row["n"]
        case = (m, n, sum(other[:2] == (m, n) for other in own))  # which of the batches of this shape
        own[case], pairs[case] = fraction(rows, row), row["B"]
    cases = sorted(pairs, key=lambda case: (case[0] * case[1], case))
    several = any(k for *_, k in cases)
    names = [f"{m}x{n}" + f"\n{pairs[m, n, k]:,.0e}".replace("e+0", "e") * several for m, n, k in cases]
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    width = 0.8 / len(heights)
    for k, (series, own) in enumerate(sorted(heights.items())):
        positions = [i + (k - (len(heights) - 1) / 2) * width for i in range(len(cases))]
        style = {"color": COLOURS[-k % len(COLOURS)], "edgecolor": "black", "hatch": ("", "//", "..", "xx")[k % 4]}
        axes.bar(positions, [own.get(case, 0) for case in cases], width, label=", ".join(series), **style)
    axes.set_xticks(range(len(cases)), names)
    axes.axhline(1, label="best copy of the same bytes", **COPY_STYLE)
    axes.set(xlabel="shape of W" + ", pairs" * several, ylabel="fraction of the copy's speed")
    axes.set_title("value_and_grad, outputs given", loc="left")
    figure.legend(loc="outside upper right", ncols=5, frameon=False)
    return figure


def draw(results: Row, path: Path) -> None:
    """A picture for each part of which there is one, with machine and date under it."""
    for part, picture in (("backends", fractions), ("shapes", fractions), ("batch", batch)):
        if rows := [row for row in results["rows"] if row["part"] == part and "median" in row]:
            figure = picture(rows)
            figure.supxlabel(caption(results), fontsize=8, color="0.3")
            figure.savefig(path.with_name(f"{path.stem}-{part}.png"), dpi=150)
            plt.close(figure)
