"""Writes docs/accuracy.md and its picture from the results of ``measure``."""

from pathlib import Path
from typing import Any

import numpy as np

from accuracy.tally import BINS, FIRST, SPAN, allowed_eps

Row = dict[str, Any]
TITLES = ("loss", "g = dW", "dx")
# Classes of the histograms: their upper ends in ulp, which are classes of the tally as well.
ENDS = (0.5, 1, 2, 4, 8, 16, 1024, np.inf)
HEADS = ("below ½", "½ to 1", "1 to 2", "2 to 4", "4 to 8", "8 to 16", "16 to 1024", "more")

PAGE = """# Accuracy

The errors of every backend over all of q, beside those of JAX, torch and the textbook formula. `make accuracy` writes
this page and its picture; `make test` holds the backends to the contract on a part of the same values.

Measured on {date}: {machine}; {versions}.
It took {minutes:.1f} minutes ({cpu_minutes:.1f} minutes of processor time).

![The largest error of loss, g and dx over q, for all contenders, in float32 and float64]({picture})

From q = 3 on, the contenders that subtract s from 1 lose digits of g, until g is 0. Our backends lose none, and no more
with a target of 1, where the others also lose s - 1.

## What is measured

Pairs of 1x1 with x = 1. For these q = W exactly, dW = g exactly and dx = g q, so every error comes from the arithmetic
of the library. Each value of q is computed without a target, which is a target of 0, and, with the other sign, with a
target of 1: the truth is the same then, but for the sign of g. The loss is the square of the error e, so the relative
error of e is half of that of the loss.

- **float32**: {float32_values} of q through every backend of ours{peers_values},
  against float64.
- **float64**: {float64_values:,} values of q, a third of them uniform to beyond the underflow, a third with |q| uniform
  in its logarithm, a third of any bits, against double-double arithmetic that agrees with mpmath to 2^-90
  (`tests/accuracy/truth.py`).

An error in **ulp** is a multiple of the spacing of the dtype's numbers at the true value. The relative error in
**eps**, the unit of the contract, is between half of that number and that number. A result below the smallest normal
number, and a dx made from such a g, is held to the contract but has no error in ulp; a GPU that flushes such numbers to
0 is allowed four times the error. q = inf, -inf and NaN must give what the contract says. *Out of contract* counts the
values of q for which a result breaks the contract, these three included.

## The largest errors

The q of each error is in brackets.

{maxima}{missing}

## Wrong gradients in the tails

The share of q, uniform from -100 to 100, where g is off by more than 1 % of itself, among those where g is a normal
number.

{tails}

## How the errors are spread

The share of results in per cent, by their error in ulp, without a target. Every bit pattern (in float64 every drawn
value) has the same weight.

{histograms}

## Why the contract holds

This is a sketch, to first order in eps. The relative error of every operation is at most eps/2, that of exp E eps.

1. t = exp(-|q|) is computed as t (1 + e), |e| <= E eps. 1 + t is in [1, 2], where numbers are eps apart, so rounding it
   costs eps/2. r = 1 / (1 + t) is in [1/2, 1], where numbers are eps/2 apart, so rounding it costs eps/4. Relative to
   their values these are (eps/2) / (1 + t) and (eps/4) (1 + t), together at most 3/4 eps for every t in [0, 1]. With
   p = t / (1 + t), which is in [0, 1/2], the relative error of r is -p e + 3/4 eps.
2. t r is rounded once more. So the larger of s and 1 - s, which is r, has the error -p e + 3/4 eps, and the smaller,
   t r, has (1 - p) e + 5/4 eps.
3. g = (2 s) (s (1 - s)) has two more roundings. For q >= 0 it is made of r, r and t r, with the error
   (1 - 3p) e + 15/4 eps, at most (E + 3.75) eps. For q < 0 it is made of t r, t r and r, with the error
   (2 - 3p) e + 17/4 eps, at most **(2 E + 4.25) eps**.
4. dW_ij = g_i x_j is rounded once more: **(2 E + 4.75) eps**.
5. s² has twice the error of s and one rounding, and is summed over m rows. S eps is the rounding of that sum, where S
   = m/2 for any order, in which a term goes through at most m - 1 additions of eps/2. On a CPU it goes through at
   most 2 ceil(log2 m) + 2 of them: the kernels add in trees, in chains of 8 and, between chains, with the error of
   each addition (TwoSum). So S = min(m/2, ceil(log2 m) + 1) there, and the error of the loss is at most
   **(2 E + 2.5 + S) eps**.
6. dx_j is a sum of m products: **(2 E + 4.25 + S) eps** of sum_i |g_i W_ij|.
7. q_i itself has an error of at most δ_i = r (eps/2) sum_j |W_ij x_j|, where a term is rounded r times: once in its
   product and then in each addition. r = n for any order. A tree has at most 2 log2 n levels (numba, small n); chains
   side by side in the lanes have n / (4 lanes) + 7 + log2 lanes (numba, other rows of more than 256 bytes; n / lanes
   for shorter ones); chains of 4 KiB, each 4 or 2 sums of 256 terms side by side, have 256 + log2(n / 256) + 5 (NumPy,
   n > 256). d log(g)/dq = 2 - 3s and d log(s²)/dq = 2 (1 - s) are between -1 and 2, which adds 2 δ_i to each of these
   bounds.
8. With a target y, e = s - y for y <= 1/2, else (1 - y) - c with c = 1 - s, and all bounds are relative to a = min(s +
   |y|, c + |1 - y|) in the place of |e|. For y = 0 and y = 1 that is |e|, which is s or c without a rounding: points 1
   to 7 hold as they stand, with s and c exchanged for y = 1. Else e has the error of s or c, as in point 2, and one
   rounding of its own. s c has the error (1 - 2p) e + 5/2 eps. Where the smaller of s and c is in e, e is off by
   (1 - p) e + 5/4 eps of it and by 1/2 eps of |e|: with the last product that makes (2 E + 4.75) eps of g's scale 2 a s
   c, and 1/2 eps more in dW and dx. Where r is in e, it is at most 2a and s c at most 2 p a: e is off by 3/4 eps r, by
   E eps s c and by 1/2 eps of |e|, which makes (E + 5) eps. For y > 2 the rounding of 1 - y is one more of eps/2, but
   r <= a/2. dg/dq = 2 s c (s c + e (1 - 2s)) and |e|, s c <= a: again this adds 2 δ_i.
9. A cotangent is one more product: 1/2 eps in g, dW and dx. A sum over B pairs adds in trees, and between these with
   the errors of the additions: (ceil(log2 B) + 1) eps of the sum of the terms' sizes.

These are the bounds for 1x1 and x = 1, with the largest measured relative error of each backend's exp, beside the
measured errors, in eps:

{bounds}

The roundings are never all at their largest together, so the measured errors stay below the bounds.{exhausted}
For NumPy's float32 the bounds are above what the contract allows; there it rests on the measurement alone.
"""


def write(results: Row, path: Path) -> None:
    """The page at ``path`` and the picture beside it."""
    from accuracy.picture import draw  # matplotlib is needed here alone

    path.parent.mkdir(parents=True, exist_ok=True)
    draw(results, path.with_suffix(".png"))
    path.write_text(page(results, path.with_suffix(".png").name), encoding="utf-8")


def page(results: Row, picture: str) -> str:
    """The text."""
    rows, every, peers_every = results["rows"], results["every"], results["peers_every"]
    plain = without_target(rows)
    missing = [f"\n\n{name} was not measured here: {reason}." for name, reason in results["missing"].items()]
    return PAGE.format(
        **{key: results[key] for key in ("date", "machine")},
        versions=", ".join(f"{name} {v}" for name, v in results["versions"].items()),
        minutes=results["seconds"] / 60,
        cpu_minutes=results["cpu_seconds"] / 60,
        picture=picture,
        float32_values="all 2^32 bit patterns" if every == 1 else f"every {every:,}th of the 2^32 bit patterns",
        peers_values="" if peers_every == every else f", every {peers_every:,}th of them through the others",
        float64_values=next(row["values"] for row in rows if row["dtype"] == "float64"),
        maxima="\n\n".join(_maxima([row for row in rows if row["dtype"] == dtype], dtype) for dtype in SPAN),
        tails=_tails(rows),
        missing="".join(missing),
        exhausted=" In float32 every value was tried." if every == 1 else "",
        histograms="\n\n".join(_histograms([row for row in plain if row["dtype"] == dtype], dtype) for dtype in SPAN),
        bounds=_bounds(plain, results["exp"]),
    )


def without_target(rows: list[Row]) -> list[Row]:
    """The rows measured without a target."""
    return [row for row in rows if row["target"] is None]


def contract_breakers(results: Row) -> list[str]:
    """The backends of ours that break the contract, also where it was made tighter after they were measured."""
    return [
        f"{row['contender']}, {row['dtype']}, {title}"
        for row in results["rows"]
        for k, (title, limit) in enumerate(zip(TITLES, allowed_eps(np.dtype(row["dtype"])), strict=True))
        if row["ours"] and (row["broken"][k][0] or row["eps"][k][0] > limit)
    ]


def table(head: list[str], lines: list[list[str]]) -> str:
    """In Markdown; all columns but the first are numbers."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *lines))


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def _maxima(rows: list[Row], dtype: str) -> str:
    lines = []
    for row in rows:
        sign = 1 if row["target"] is None else -1  # with a target of 1 the tally has -q
        ulp = [f"{_number(error)} ({sign * q:.4g})" for error, q in row["ulp"]]
        eps = [_number(error) for error, _ in row["eps"]]
        broken = 100 * max(count for count, _ in row["broken"]) / row["values"]
        name = row["contender"] + ("" if row["target"] is None else f", y = {row['target']:g}")
        lines.append([name, *ulp, *eps, f"{broken:.3g} %" if broken else "none"])
    allowed = [f"{limit:.3g}" for limit in allowed_eps(np.dtype(dtype))]
    lines.append(["allowed by the contract", "", "", "", *allowed, ""])
    heads = [f"{title}, {unit}" for unit in ("ulp", "eps") for title in TITLES]
    return table([dtype, *heads, "out of contract"], lines)


def _tails(rows: list[Row]) -> str:
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["dtype"], row["target"] is not None)):
        lines.setdefault(row["contender"], []).append(f"{100 * row['wrong']:.3g} %" if row["wrong"] else "none")
    heads = [f"{dtype}, y = {y}" for dtype in SPAN for y in (0, 1)]
    return table(["contender", *heads], [[name, *texts] for name, texts in lines.items()])


def _histograms(rows: list[Row], dtype: str) -> str:
    lines = []
    edges = [int(np.log2(end)) - FIRST + 1 for end in ENDS[:-1]]
    for row in rows:
        for title, classes in zip(TITLES, row["classes"], strict=True):
            shares = [part.sum() for part in np.split(np.array(classes), edges)]
            texts = [f"{100 * share / sum(shares):.3g}" if share else "" for share in shares]
            lines.append([f"{row['contender']}, {title}", *texts])
    return table([dtype, *HEADS], lines)


def _bounds(rows: list[Row], exp: Row) -> str:
    lines = []
    for row in rows:
        error = exp.get(row["contender"].split(", ")[-1], {}).get(row["dtype"])
        if row["ours"] and error:
            pairs = zip((3, 4.25, 4.75), row["eps"], strict=True)
            texts = [text for more, (eps, _) in pairs for text in (f"{2 * error + more:.2f}", _number(eps))]
            lines.append([f"{row['contender']}, {row['dtype']}", f"{error:.2f}", *texts])
    heads = [f"{title}, {what}" for title in TITLES for what in ("bound", "measured")]
    return table(["backend", "E", *heads], lines)


def profile(row: Row, output: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of each bin of q and the largest error in it, NaN where there is none."""
    span, errors = SPAN[row["dtype"]], np.array(row["profile"][output])
    return (np.arange(BINS) + 0.5) * (2 * span / BINS) - span, np.where(errors > 0, errors, np.nan)
