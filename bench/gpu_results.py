"""The results of the GPU benchmarks: a JSON file with the machine and a row for each thing that was measured."""

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
from measure import Case
from rows import Row

from sigmoid_l2.kernels.cuda_launch import plan, size_class

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("sigmoid-l2", "numpy", "cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda", "torch", "triton", "jax")


@cache
def machine() -> dict[str, Any]:
    """The GPU, its driver and what is installed."""
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
        "versions": {name: found for name in LIBRARIES if (found := installed(name))},
    }


def driver() -> str:
    """The version of the NVIDIA driver, where nvidia-smi tells it."""
    if not (smi := shutil.which("nvidia-smi")):
        return "unknown: no nvidia-smi"
    command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (told.stdout.split() or ["unknown: nvidia-smi told nothing"])[0]


def installed(distribution: str) -> str | None:
    """Its version, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def results_path() -> Path:
    """Where the results of today on this GPU are."""
    name = re.sub(r"\W+", "-", machine()["gpu"].lower()).strip("-")
    return RESULTS / f"{datetime.now():%Y-%m-%d}-{name}.json"


def write(results: dict[str, Any], path: Path) -> None:
    """Keep what has been measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def new_results() -> dict[str, Any]:
    """Results without rows."""
    return {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "machine": machine(), "rows": []}


def row(part: str, contender: str, case: Case) -> Row:
    """What all rows have."""
    p = plan(case.m, case.n, np.dtype(case.dtype).itemsize)
    sizes = {"dtype": case.dtype, "m": case.m, "n": case.n, "B": case.B, "bytes": case.traffic, "class": size_class(p)}
    return {"part": part, "contender": contender, **sizes}


def one_line(error: Exception) -> str:
    """What happened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
