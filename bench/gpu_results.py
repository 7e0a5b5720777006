"""The results of the GPU benchmarks: a JSON file with the machine and a row for each thing that was measured.

And what their programs share as commands: the options, and that each waits for its turn after it has compiled.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from gpu_steps import COMPILED, commit
from measure import Case
from rows import Row

from sigmoid_l2.kernels.gpu.plan import make_plan, size_class

RESULTS = Path(__file__).resolve().parent / "results"
GPU_LIBRARIES = ("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numba-cuda-mlir")
COMPILERS = ("cuda-bindings", "cuda-core", "nvidia-cuda-nvrtc", "nvidia-nvvm", "nvidia-nvjitlink")
LIBRARIES = ("sigmoid-l2", "numpy", "numba", *GPU_LIBRARIES, *COMPILERS, "torch", "triton", "jax")


def options(description: str, backends: tuple[str, ...]) -> argparse.ArgumentParser:
    """The options of every program that measures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="for <date>-<gpu>.json; default: bench/results"
    )
    parser.add_argument("--backend", nargs="+", choices=backends, default=backends, help="default: both")
    parser.add_argument(
        "--share", type=share, default=slice(None), metavar="K/N", help="only every N-th case, from K on"
    )
    parser.add_argument("--in-turn", action="store_true", help="measure when a line comes to stdin, and do not report")
    return parser


def share(text: str) -> slice:
    """The slice of "K/N": every N-th from K on."""
    first, step = map(int, text.split("/"))
    return slice(first, None, step)


def wait_for_turn() -> None:
    """Say that everything is compiled, and wait until nobody else compiles or measures."""
    print(COMPILED, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody is there to give the turn")


@cache
def machine() -> dict[str, Any]:
    """The GPU, its driver, what is installed and the commit that is measured."""
    import cupy

    runtime = cupy.cuda.runtime
    told = runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = told["name"]
    return {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{told['major']}.{told['minor']}",
        "multiprocessors": told["multiProcessorCount"],
        "l2_mb": told["l2CacheSize"] / 1e6,
        "memory_gb": round(told["totalGlobalMem"] / 1e9, 1),
        "driver": driver(),
        "cuda_of_the_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "python": sys.version.split()[0],
        "commit": commit(),
        "versions": {name: found for name in LIBRARIES if (found := installed(name))},
    }


def driver() -> str:
    """The version of the NVIDIA driver, where nvidia-smi tells it."""
    if not (smi := shutil.which("nvidia-smi")):
        return "unknown: no nvidia-smi"
    command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "unknown: nvidia-smi hangs"
    return (told.stdout.split() or ["unknown: nvidia-smi told nothing"])[0]


def installed(distribution: str) -> str | None:
    """Its version, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def results_path(folder: Path) -> Path:
    """Where the results of today on this GPU are."""
    name = re.sub(r"\W+", "-", machine()["gpu"].lower()).strip("-")
    return folder / f"{datetime.now():%Y-%m-%d}-{name}.json"


def add(rows: list[Row], path: Path) -> None:
    """Put ``rows`` into the file, in the place of older ones of the same things; date and machine are the newest."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = [_what(row) for row in rows]
    kept = [row for row in old if _what(row) not in new]
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    write({"date": date, "machine": machine(), "rows": kept + rows}, path)


def _what(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("part", "contender", "dtype", "m", "n", "B", "what"))


def write(results: dict[str, Any], path: Path) -> None:
    """Replace the file at once, so that a program that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def row(part: str, contender: str, case: Case) -> Row:
    """What all rows have."""
    p = make_plan(case.m, case.n, np.dtype(case.dtype).itemsize)
    sizes = {"dtype": case.dtype, "m": case.m, "n": case.n, "B": case.B, "bytes": case.traffic, "class": size_class(p)}
    return {"part": part, "contender": contender, **sizes}


def one_line(error: Exception) -> str:
    """What happened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
