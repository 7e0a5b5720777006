"""Workers of joblib and Dask: together they start no more threads than there are processors."""

import pytest
from processes import run_python

WORKERS = 2
# What a worker tells: its process, how many threads a call may use, how many a large call has, and the sum of its loss.
COUNT = f"""
import os, threading, time
import numpy as np
import sigmoid_l2 as sl2

WORKERS = {WORKERS}

def count(task):
    loss = sl2.value(np.zeros((1 << 19, 2, 2)), np.ones((1 << 19, 2)), backend="numpy")
    time.sleep(0.1)  # so that the other worker takes some of the tasks
    helpers = sum(thread.name == "sigmoid-l2" for thread in threading.enumerate())
    return os.getpid(), sl2.get_num_threads(), helpers + 1, int(loss.sum())

"""
# Each prints the number of processors, and then what its workers tell.
LIBRARIES = {
    "joblib": """
import joblib

print(joblib.cpu_count())
print(*joblib.Parallel(WORKERS)(map(joblib.delayed(count), range(8))), sep="\\n")
""",
    "distributed": """
import dask

dask.config.set({"logging": {"distributed": "critical"}})
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster

with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
    with Client(cluster) as client:
        told = client.gather(client.map(count, range(8), pure=False))
print(CPU_COUNT)
print(*told, sep="\\n")
""",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_more_threads_than_processors(library, monkeypatch):
    pytest.importorskip(library)
    for variable in ("SIGMOID_L2_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    processors, *told = run_python(COUNT + LIBRARIES[library]).splitlines()
    rows = [tuple(map(int, line.strip("()").split(","))) for line in told]
    assert len(rows) == 8
    assert len({process for process, *_ in rows}) <= WORKERS
    for _, number, running, total in rows:
        assert total == 1 << 18, "2 rows of (1/2)² each"
        assert 1 <= running <= number
        assert number * WORKERS <= max(int(processors), WORKERS)
