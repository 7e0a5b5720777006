"""The picture of the report, in colours for the colour-blind that also print in grey."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from accuracy.report import TITLES, profile, without_target
from accuracy.tally import SPAN

# Okabe and Ito's colours. Those that lie on each other are drawn from broad to narrow.
OURS = ({"color": "black"}, {"color": "#56B4E9"}, {"color": "#009E73"}, {"color": "#CC79A7"})
THEIRS = (
    {"color": "#F0E442", "linewidth": 6},
    {"color": "#D55E00", "linewidth": 2.5},
    {"color": "#0072B2", "linewidth": 1.4, "linestyle": "--"},
)


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each output and dtype: the largest error in ulp over q, as far as it is above 0.1."""
    figure, panels = plt.subplots(len(TITLES), len(SPAN), figsize=(12, 10), layout="constrained", sharex="col")
    for output, (row_of_panels, title) in enumerate(zip(panels, TITLES, strict=True)):
        for axes, (dtype, span) in zip(row_of_panels, SPAN.items(), strict=True):
            rows = [row for row in without_target(results["rows"]) if row["dtype"] == dtype]
            ours, theirs = ([row for row in rows if row["ours"] == flag] for flag in (True, False))
            for row, style in (*zip(theirs[::-1], THEIRS, strict=False), *zip(ours, OURS, strict=False)):
                axes.plot(*profile(row, output), label=row["contender"], **{"linewidth": 1.1} | style)
            top = 100 if title == "loss" else None
            axes.set(yscale="log", ylim=(0.1, top), xlim=(-span, span), title=f"{title}, {dtype}")
            axes.grid(color="0.88", linewidth=0.6)
        row_of_panels[0].set_ylabel("largest error in ulp")
    for axes in panels[-1]:
        axes.set_xlabel("q")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]), frameon=False)
    caption = f"Largest error in each of 1024 bins of q, where the result is a normal number. {results['machine']}, "
    figure.supxlabel(caption + results["date"], fontsize=8, color="0.3")
    figure.savefig(path, dpi=110)
    plt.close(figure)
