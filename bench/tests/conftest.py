"""The programs of bench/ can be imported, and so can what the tests of the library have: stand-ins and the driver."""

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
sys.path += [str(BENCH), str(BENCH / "predict"), str(BENCH.parent / "tests")]
