"""The predictions of ``roofline`` as tables in Markdown: a line for each case, each cell CuPy's / numba.cuda's."""

from collections.abc import Callable, Iterable

from report_tables import markdown
from results import Row

Pair = list[Row]  # the rows of one case and chip, of both kernels


def show(many: list[Row], few: list[Row], one_W: list[Row], before: list[Row] | None) -> None:
    """Print all tables: of batches that keep a chip busy, of few pairs, of one W for many x, and of all."""
    print("PREDICTION, not measured: fraction of the speed of a plain copy, and what limits it\n")
    print(by_chip(many, _class, lambda pair: f"{_fractions(pair)} {_limits(pair)}"))
    print("\nPREDICTION, not measured: µs of few pairs, fraction of the speed of a plain copy, and what limits it\n")
    print(by_chip(few, _class, lambda pair: f"{_us(pair)}; {_fractions(pair)} {_limits(pair)}"))
    print("\nPREDICTION, not measured: ms of one W for many x, fraction of the speed of a plain copy, and limit\n")
    print(by_chip(one_W, _class, lambda pair: f"{_ms(pair)}; {_fractions(pair)} {_limits(pair)}"))
    print("\nWhat it comes from, for H200: counts in the PTX, and what the machine code uses of a multiprocessor\n")
    print(counts(many + few + one_W, "H200"))
    if before is not None:
        print("\nPREDICTION, not measured: what has changed, and what limits it now\n")
        print(changes(before, many + few + one_W))


def by_chip(rows: Iterable[Row], kind: Callable[[Pair], str], cell: Callable[[Pair], str]) -> str:
    """A column for each chip."""
    cases = _by_case(rows)
    lines = [[case, kind(next(iter(chips.values()))), *map(cell, chips.values())] for case, chips in cases.items()]
    chips = next(iter(cases.values()))
    return markdown(("case", "class", *(f"PREDICTION for {chip}" for chip in chips)), lines, words=2)


def counts(rows: Iterable[Row], chip: str) -> str:
    """What the predictions for one chip come from."""
    keys = ("instructions", "trips", "registers", "shared", "resident_blocks")
    lines = [
        [case, *(_both(chips[chip], key) for key in keys), _kib(chips[chip])] for case, chips in _by_case(rows).items()
    ]
    head = ("case", "instructions a warp", "trips", "registers", "bytes shared", "blocks", "KiB of reads in flight")
    return markdown(head, lines)


def changes(before: Iterable[Row], after: Iterable[Row], chips: Iterable[str] = ("H100", "H200")) -> str:
    """Counts and predictions of the cases of which one is different; the counts are for the last of the chips."""
    old, new = _by_case(before), _by_case(after)
    *_, last = chips
    lines = []
    for case in [case for case in new if case in old]:
        cells = [_change(old[case][last], new[case][last], f) for f in (_instructions, _kib)]
        cells += [_change(old[case][chip], new[case][chip], _fractions) for chip in chips]
        if any("→" in cell for cell in cells):
            lines.append([case, *cells, _limits(new[case][last])])
    predictions = (f"PREDICTION for {chip}" for chip in chips)
    return markdown(("case", "instructions a warp", "KiB of reads in flight", *predictions, "limit"), lines)


def _by_case(rows: Iterable[Row]) -> dict[str, dict[str, Pair]]:
    """The rows by case, and then by chip."""
    cases: dict[str, dict[str, Pair]] = {}
    for row in rows:
        case = f"{'one W of ' * row.get('one_W', False)}{row['m']}x{row['n']} {row['dtype']}, B = {row['B']:,}"
        cases.setdefault(case, {}).setdefault(row["chip"], []).append(row)
    return cases


def _both(pair: Pair, key: str, form: str = ".0f", scale: float = 1) -> str:
    """The values of both kernels; one where they look the same."""
    values = [format(row[key] * scale, form) for row in pair]
    return " / ".join(values if len(set(values)) > 1 else values[:1])


def _fractions(pair: Pair) -> str:
    return _both(pair, "predicted_fraction_of_copy", ".2f")


def _us(pair: Pair) -> str:
    return _both(pair, "predicted_us", ".1f")


def _ms(pair: Pair) -> str:
    return _both(pair, "predicted_us", ".2f", 1e-3)


def _instructions(pair: Pair) -> str:
    return _both(pair, "instructions")


def _kib(pair: Pair) -> str:
    return _both(pair, "bytes_in_flight", scale=1 / 1024)


def _limits(pair: Pair) -> str:
    return " / ".join(dict.fromkeys(row["limit"] for row in pair))


def _class(pair: Pair) -> str:
    return str(pair[0]["class"])


def _change(old: Pair, new: Pair, text: Callable[[Pair], str]) -> str:
    return text(new) if text(old) == text(new) else f"{text(old)} → {text(new)}"
