"""Measure the errors of every backend, of JAX, torch and the textbook formula, and write docs/accuracy.md.

PYTHONPATH=tests python -m accuracy [--every N] [--peers-every N] [--float64 N] [-o FILE.md] [--results FILE] [--again]

All 2^32 values of float32 take about 4 minutes on 2 idle cores, and 5 more if the peers are to have all of them too;
--every 1009 --peers-every 1009 --float64 1000000 takes some seconds. Exits with 1 if a backend breaks the contract.
"""

import argparse
import json
import sys
from pathlib import Path

from accuracy.measure import measure
from accuracy.report import contract_breakers, write


def main() -> None:
    """Measure, keep the results, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth bit pattern of float32; odd")
    parser.add_argument(
        "--peers-every", type=int, default=17, metavar="N", help="the same for JAX, torch, the textbook"
    )
    parser.add_argument("--float64", type=int, default=10**8 + 2**20, metavar="N", help="so many values of float64")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/accuracy.md"), metavar="FILE.md")
    parser.add_argument("--results", type=Path, default=Path("build/accuracy.json"), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="write the report of --results anew, measure nothing")
    args = parser.parse_args()

    if not args.again:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        results = measure(args.every, args.peers_every, args.float64)
        args.results.write_text(json.dumps(results) + "\n", encoding="utf-8")
    results = json.loads(args.results.read_text(encoding="utf-8"))
    write(results, args.output)
    print(f"{args.output}: written")
    if breakers := contract_breakers(results):
        sys.exit("out of contract: " + "; ".join(breakers))


if __name__ == "__main__":
    main()
