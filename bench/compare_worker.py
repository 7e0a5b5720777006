"""One of compare's two processes: it imports the package that is first on PYTHONPATH, and answers lines of JSON.

python bench/compare_worker.py BACKEND

It says what it has imported and whether the backend runs. Then a job prepares a call and is answered with the seconds
that a turn takes, or why it cannot be timed; null is answered with the seconds of one call.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from timing import DeviceTurn, HostTurn, Turn
from workload import Case, Copy, Workload

import sigmoid_l2 as sl2


@dataclass(frozen=True)
class Job:
    """What both processes time; ``threads`` 0 stands for the default number."""

    dtype: str
    m: int
    n: int
    B: int
    given: bool = True
    threads: int = 0

    def __str__(self) -> str:
        outputs = "given" if self.given else "new"
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.m}x{self.n} {self.dtype}, B = {self.B:,}, outputs {outputs}{threads}"

    def turn(self, backend: str, device: str) -> Turn:
        """The call, checked, with its clock."""
        sl2.set_num_threads(self.threads or None)
        case = Case(device, self.dtype, self.m, self.n, self.B)
        call = Workload(case).call(backend, self.given)
        return HostTurn(call) if device == "cpu" else DeviceTurn(call, Copy(case))


def main() -> None:
    """Answer until the input ends."""
    (backend,) = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints is taken for an answer

    def answer(what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    info = next((info for info in sl2.backends() if info.name == backend), None)
    device = "gpu" if info and info.device == "cuda" else "cpu"
    reasons = [f"there is no backend {backend}"] if info is None else info.reasons
    answer({"package": sl2.__file__, "device": device, "reasons": reasons})
    turn: Any = None
    for line in sys.stdin:
        if (told := json.loads(line)) is None:
            answer(turn())
            continue
        turn = None  # its arrays are freed before there are new ones
        try:
            turn = Job(**told).turn(backend, device)
            answer({"takes": turn.takes})
        except Exception as error:
            answer({"reason": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
