"""One line: how fast this machine computes a million 3x3 pairs, beside a plain copy of the same bytes."""

import argparse

from measure import HostTurn, in_turn
from workload import Case, Copy, Workload, finished

import sigmoid_l2 as sl2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1_000_000, metavar="B", help="pairs (default 1000000)")
    parser.add_argument("--shape", type=int, nargs=2, default=(3, 3), metavar=("M", "N"), help="of W (default 3 3)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--backend", default=None, help="default: the best one available here")
    args = parser.parse_args()

    devices = {b.name: "gpu" if b.device == "cuda" else "cpu" for b in sl2.backends()}
    # The first in the library's order of preference, of those on a GPU where there are any.
    available = [b.name for b in sl2.backends() if b.available]
    backend = args.backend or min(available, key=lambda name: devices[name] != "gpu")
    case = Case(devices[backend], args.dtype, *args.shape, args.batch)
    runs = {"call": Workload(case).call(backend), "copy": Copy(case)}
    times = in_turn({name: HostTurn(finished(run, case.device)) for name, run in runs.items()}, rounds=21)
    median = {name: t.median for name, t in times.items()}
    rate = case.traffic / median["call"] / 1e9
    print(
        f"{case.B:,} random {case.m}x{case.n} {case.dtype} pairs, loss, dW and dx on backend {backend!r}:\n"
        f"{median['call'] * 1e3:.2f} ms, {case.B / median['call'] / 1e6:,.0f} million pairs/s, {rate:.1f} GB/s, "
        f"{median['copy'] / median['call']:.2f} of the speed of a plain copy of the same {case.traffic / 1e6:.0f} MB "
        f"({case.traffic / median['copy'] / 1e9:.1f} GB/s)"
    )


if __name__ == "__main__":
    main()
