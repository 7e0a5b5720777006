"""The results of a benchmark: a row, a dict, for each thing that was measured, and the JSON file with the machine."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkout import ROOT, commit
from workload import Case

import sigmoid_l2 as sl2

Row = dict[str, Any]
RESULTS = ROOT / "bench" / "results"
# Names of contenders: the plain copies, and ours; all others are peers.
COPY = {"cpu": "np.copyto", "gpu": "device copy"}
STREAMED = "streamed copy"
COPIES = (*COPY.values(), STREAMED)
# What a row calls outputs that are new in each call of a loop, whose last results are freed after that.
LOOP = "new in a loop"
OURS = ("sigmoid-l2", "sigmoid-l2, auto", "cupy", "numba-cuda", "numba", "numpy")
IN_FRAMEWORKS = ("sigmoid-l2 in PyTorch", "sigmoid-l2 in JAX")
OURS += IN_FRAMEWORKS
GPU_LIBRARIES = ("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numba-cuda-mlir")
LIBRARIES = ("sigmoid-l2", "numpy", "numba", *GPU_LIBRARIES)
LIBRARIES += ("cuda-bindings", "cuda-core", "nvidia-cuda-nvrtc", "nvidia-nvvm", "nvidia-nvjitlink")
LIBRARIES += ("torch", "triton", "jax")

# --- rows -----------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """Who is timed: the name, whether outputs are "given" or "fresh", and the threads where they are known."""

    contender: str
    outputs: str = "given"
    threads: int | None = None


def row(part: str, case: Case, contender: str, **more: Any) -> Row:
    """What all rows of ``part`` of a benchmark have; on a GPU also the class of kernels that the sizes belong to."""
    sizes = {"dtype": case.dtype, "m": case.m, "n": case.n, "B": case.B, "bytes": case.traffic}
    if case.device == "gpu":
        from sigmoid_l2.kernels.gpu.plan import make_plan, size_class  # compare imports older packages as well

        size = size_class(make_plan(case.m, case.n, np.dtype(case.dtype).itemsize))
        sizes["class"] = "one W" if len(case.matrices) == 2 else size
    return {"part": part, "contender": contender, **more, **sizes}


def is_ours(row: Row) -> bool:
    """Whether it is a row of this library."""
    return row["contender"] in OURS


def is_copy(row: Row) -> bool:
    """Whether it is a row of a plain copy."""
    return row["contender"] in COPIES


def same_case(rows: Iterable[Row], row: Row) -> list[Row]:
    """The rows that were measured in turn with ``row``, itself included; none that have a reason instead of a time."""
    keys = ("part", "dtype", "m", "n", "B")
    return [other for other in rows if "median" in other and all(other[key] == row[key] for key in keys)]


def best_copy(rows: Iterable[Row], row: Row, names: Iterable[str] = COPIES) -> Row:
    """The fastest copy, of these, that was measured in turn with ``row``, on no more threads than it."""
    copies = [r for r in same_case(rows, row) if r["contender"] in names and r["outputs"] == "given"]
    return min((r for r in copies if (r["threads"] or 0) <= (row["threads"] or 0)), key=lambda r: r["median"])


def fraction(rows: Iterable[Row], row: Row, names: Iterable[str] = COPIES) -> float:
    """How much of the speed of the best copy, of these, ``row`` has."""
    if "fraction_of_copy" in row:
        return row["fraction_of_copy"]
    return best_copy(rows, row, names)["median"] / row["median"]


def copy_name(rows: Iterable[Row], row: Row) -> str:
    """Which copy that is."""
    return row["copy"] if "copy" in row else name(best_copy(rows, row))


def label(row: Row) -> str:
    """What was computed."""
    pairs = "one pair" if row["part"] == "pair" else f"B = {row['B']:,}"
    return f"{row['m']}x{row['n']} {row['dtype']}, {pairs}"


def name(row: Row) -> str:
    """The contender, with its threads and outputs where these distinguish it from others."""
    if is_copy(row):
        on = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row.get("threads") else ""
        return row["contender"] + on + ", fresh output" * (row.get("outputs") == "fresh")
    outputs = row.get("outputs") if is_ours(row) or row.get("outputs") == "given" else None
    told = f"{outputs} outputs" if outputs in ("given", "fresh") else outputs
    return row["contender"] + (f", {told}" if told else "")


def one_line(error: Exception) -> str:
    """What happened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- the file -------------------------------------------------------------------------------------------------------


def now() -> str:
    """The date of a file."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def results_path(folder: Path, processor: str) -> Path:
    """The file of today's results on ``processor``."""
    name = re.sub(r"\W+", "-", processor.lower()).strip("-")
    return folder / f"{datetime.now():%Y-%m-%d}-{name}.json"


def write(results: Row, path: Path) -> None:
    """Replace the file at once, so that a program that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def add(rows: list[Row], path: Path) -> None:
    """Put ``rows`` of a GPU into the file, in the place of older ones of the same things; date and machine are new."""

    def what(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in ("part", "contender", "outputs", "dtype", "m", "n", "B", "what"))

    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = [what(row) for row in rows]
    kept = [row for row in old if what(row) not in new]
    write({"date": now(), "machine": gpu_machine(), "rows": kept + rows}, path)


def load(path: Path) -> Row:
    """The results in a file of bench_cpu, bench_gpu or pytest-benchmark, of which the extra information is a row."""
    results: Row = json.loads(path.read_text(encoding="utf-8"))
    if "benchmarks" in results:
        results["rows"] = [benchmark["extra_info"] for benchmark in results["benchmarks"]]
    return results


def caption(results: Row) -> str:
    """Machine and date, and what somebody has remarked in the file."""
    if "machine_info" in results:  # of pytest-benchmark
        machine, date = results["machine_info"], results["datetime"]
        cpu = machine.get("cpu", {})
        return f"{cpu.get('brand_raw', machine['machine'])}, {cpu.get('count', '?')} threads, {date[:10]}"
    machine = results["machine"]
    if "gpu" in machine:
        return f"{machine['gpu']}, driver {machine['driver']}, {results['date'][:10]}"
    memory = f", {machine['memory_gb']:.0f} GB" if "memory_gb" in machine else ""
    quick = ", quick run: few rounds" if results["quick"] else ""
    remark = f", {results['remark']}" if "remark" in results else ""
    return f"{machine['cpu']}, {machine['threads']} threads{memory}, {results['date'][:10]}{remark}{quick}"


# --- the machine ----------------------------------------------------------------------------------------------------


def cpu_machine() -> Row:
    """The processor, the threads that we use of it, and the memory; what the system does not tell is left out."""
    info: Row = {"cpu": platform.processor() or platform.machine(), "threads": sl2.get_num_threads()}
    info |= {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        told = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in told:  # in virtual machines the name is generic, so the numbers are added
            info["cpu"] = f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        info["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    if (pages := Path("/sys/kernel/mm/transparent_hugepage/enabled")).exists():
        info["transparent_hugepages"] = pages.read_text().strip()
    return info


@cache
def gpu_machine() -> Row:
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
        "versions": installed(LIBRARIES),
    }


def driver() -> str:
    """The version of the NVIDIA driver, where nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:  # there is none, it hangs, or it prints nothing
        return f"unknown: {one_line(error)}"


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
