"""How fast this machine computes a million 3x3 pairs, beside the best copy of the same bytes: three lines."""

import argparse

from copies import Copy
from measure import HostTurn, in_turn
from results import name
from workload import Case, Workload, finished

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
    copies = Copy(case).ways(1, sl2.get_num_threads())
    runs = {None: Workload(case).call(backend), **copies}
    times = in_turn({key: HostTurn(finished(run, case.device)) for key, run in runs.items()}, rounds=21)
    call = times.pop(None).median
    best, copy = min(((key, t.median) for key, t in times.items()), key=lambda way: way[1])
    print(
        f"{case.B:,} random {case.m}x{case.n} {case.dtype} pairs, loss, dW and dx on backend {backend!r}:\n"
        f"{call * 1e3:.2f} ms, {case.B / call / 1e6:,.0f} million pairs/s, {case.traffic / call / 1e9:.1f} GB/s, "
        f"{copy / call:.2f} of the speed of the best copy of the same {case.traffic / 1e6:.0f} MB\n"
        f"({name(best._asdict())}: {case.traffic / copy / 1e9:.1f} GB/s)"
    )


if __name__ == "__main__":
    main()
