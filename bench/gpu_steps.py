"""How gpu_check runs commands: each with a log and a limit, side by side or in turn, ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Self

from checkout import ROOT

# Seconds at the end of a limit, in which the commands that still run are ended.
GRACE = 3.0
# Seconds between two looks at the running commands.
PAUSE = 0.05
# Lines that are shown of the log of a command that failed.
SHOWN = 40
# Fraction of a step's limit that one of its commands may take in its turn, so that one that hangs leaves time to the
# others.
TURN = 1 / 3
# The line that a program prints when it has compiled and waits for its turn to measure.
COMPILED = "compiled, waiting for the turn"
# Exit status of the report where a target is missed; Python, pytest and compute-sanitizer do not use it.
MISSED = 10

Commands = dict[str, list[str]]  # command lines by the name of their log


def text_of(log: Path) -> str:
    """What is in a log, whatever its command has printed."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


class Process:
    """A running command, in a session of its own, so that the processes that it starts can be ended with it."""

    def __init__(self, log: Path, command: list[str], environment: dict[str, str]) -> None:
        self.log, self.name = log, log.stem
        self.late = False  # whether it exceeded its limit and was ended
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed."""
        return text_of(self.log)

    def runs(self) -> bool:
        """Whether it is not done."""
        return self.process.poll() is None

    def compiles(self) -> bool:
        """Whether it neither waits for its turn nor is done."""
        return self.runs() and COMPILED not in self.text()

    def give_turn(self) -> None:
        """It may measure."""
        if self.runs():
            with contextlib.suppress(BrokenPipeError):  # it has just died
                os.write(self.process.stdin.fileno(), b"\n")

    def send(self, number: int) -> None:
        """A signal to it and to all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def result(self) -> str:
        """How it went."""
        status = self.process.poll()
        if self.late:
            return "FAILED: not done in time"
        if status == 0:
            return "ok"
        if status == MISSED:
            return "FAILED: a target is missed, see Targets"
        return f"FAILED: killed by {signal.Signals(-status).name}" if status < 0 else f"FAILED with {status}"


def end(processes: list[Process]) -> None:
    """End those that still run: at SIGINT pytest prints its failures, at SIGABRT Python prints where it hangs."""
    running = [p for p in processes if p.runs()]
    for process in running:
        process.late = True
    for number in (signal.SIGINT, signal.SIGABRT, signal.SIGKILL):
        for process in running:
            process.send(number)
        until = time.monotonic() + GRACE / 3
        while any(p.runs() for p in running) and time.monotonic() < until:
            time.sleep(PAUSE)
    for process in processes:
        process.send(signal.SIGKILL)  # processes that it has left behind
        process.process.stdin.close()


class Line(NamedTuple):
    """How a command went."""

    step: str
    name: str
    result: str
    seconds: float


class Steps:
    """Runs steps within ``limits``, in seconds, and remembers how they went; logs go to ``out``."""

    def __init__(self, out: Path, environment: dict[str, str], limits: dict[str, float]) -> None:
        self.out, self.environment, self.limits = out, environment, limits
        self.began = time.time() - 0.02  # seconds; the clock of files lags by up to 0.01
        self.lines: list[Line] = []
        self.failed = False
        self.started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end([p for p in self.started if p.runs()])

    def note(self, step: str, name: str, result: str, seconds: float = 0) -> None:
        """How a command went: one line, now and in ``lines``."""
        self.lines.append(Line(step, name, result, seconds))
        self.failed |= result.startswith("FAILED")
        print(f"== {step}, {name}: {result}, {seconds:.0f} s", flush=True)

    def written(self, pattern: str) -> list[Path]:
        """The files of ``out`` that have been written since the start."""
        return [path for path in self.out.glob(pattern) if path.stat().st_mtime >= self.began]

    def start(self, commands: Commands) -> list[Process]:
        """Start ``commands``."""
        processes = [Process(self.out / f"{n}.log", command, self.environment) for n, command in commands.items()]
        self.started += processes
        return processes

    def side_by_side(self, step: str, commands: Commands, limit: float | None = None) -> list[Process]:
        """Run ``commands`` all at once, within the limit of ``step`` or another one."""
        limit = self.limits[step] if limit is None else limit
        print(f"== {step}: at most {limit:.0f} s", flush=True)
        processes = self.start(commands)
        self._finish(step, processes, limit)
        return processes

    def compiled(self, step: str, processes: list[Process], limit: float) -> None:
        """Wait until all of ``processes`` have compiled, at most ``limit`` seconds: the late go on in their turn."""
        print(f"== {step}: at most {limit:.0f} s", flush=True)
        began = time.monotonic()
        while any(p.compiles() for p in processes) and time.monotonic() < began + limit:
            time.sleep(PAUSE)
        late = " ".join(p.name for p in processes if p.compiles())
        told = f"FAILED: {late} not in time, what is timed may be disturbed" if late else "ok"
        self.note(step, f"{len(processes)} processes", told, time.monotonic() - began)

    def in_turn(self, step: str, processes: list[Process]) -> None:
        """Let ``processes`` measure one after the other."""
        limit = self.limits[step]
        print(f"== {step}: at most {limit:.0f} s", flush=True)
        until = time.monotonic() + limit - GRACE
        for k, process in enumerate(processes):
            left = until - time.monotonic()
            if left < GRACE:  # all that remain at once: one after the other, each could take as long as GRACE
                self._finish(step, processes[k:], 0)
                break
            process.give_turn()
            self._finish(step, [process], min(limit * max(TURN, 1 / len(processes)), left))

    def _finish(self, step: str, processes: list[Process], limit: float) -> None:
        """Wait until ``processes`` are done, at most ``limit`` seconds, and tell how each went."""
        began = time.monotonic()
        waiting = list(processes)
        while waiting:
            if time.monotonic() > began + limit - GRACE:
                end(waiting)
            for process in [p for p in waiting if p.late or not p.runs()]:
                waiting.remove(process)
                end([process])
                self._tell(step, process, time.monotonic() - began)
            time.sleep(PAUSE)

    def _tell(self, step: str, process: Process, seconds: float) -> None:
        result, lines = process.result(), process.text().splitlines()
        if step == "here":
            print("\n".join(lines), flush=True)
        elif step != "report" and result != "ok":  # the report is printed at the end, as a part of the summary
            print("\n".join(lines[-SHOWN:]), flush=True)
        self.note(step, process.name, result, seconds)
