"""How many processors the process may use: control groups in the forms that systems have, and the CPU affinity."""

import math
import os

import pytest
from processes import run_python

from sigmoid_l2 import processors

V2 = "30 23 0:26 / {sys} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:29 / {sys}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER = "32 23 0:31 / {sys}/cpuset rw - cgroup cgroup rw,cpuset\n33 23 0:2 / /home\udcff rw - ext4 /dev/sda1 rw"
SYSTEMS = {  # mountinfo, cgroup, the files with their content, and how many processors' worth of time
    "no files": (None, None, {}, math.inf),
    "version 2": (V2, "0::/a/b", {"a/b/cpu.max": "150000 100000"}, 1.5),
    "version 2, unlimited": (V2, "0::/a/b", {"a/b/cpu.max": "max 100000"}, math.inf),
    "version 2, the parent is the least": (
        V2,
        "0::/a/b/c",
        {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "300000 100000", "a/cpu.max": "800000 100000"},
        3,
    ),
    "version 2, the topmost is the least": (
        V2,
        "0::/a/b",
        {"a/b/cpu.max": "400000 100000", "cpu.max": "200000 100000"},
        2,
    ),
    "version 2, a container that sees itself as the topmost": (V2, "0::/", {"cpu.max": "250000 100000"}, 2.5),
    "version 2, beside the container's group": (V2, "0::/../x", {"cpu.max": "50000 100000"}, 0.5),
    "version 2, a group of others": (V2, "0::/a", {"b/cpu.max": "100000 100000"}, math.inf),
    "version 1": (
        f"{OTHER}\n{V1}",
        "4:cpuset:/z\n3:cpu,cpuacct:/a\n1:name=systemd:/b",
        {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "600000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "200000",
            "cpuset/z/cpu.cfs_quota_us": "1",
            "cpuset/z/cpu.cfs_period_us": "1",
        },
        3,
    ),
    "version 1, unlimited": (
        V1,
        "3:cpu,cpuacct:/a",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "version 1, a container": (
        V1.replace(" / ", " /docker/1 "),
        "3:cpu,cpuacct:/docker/1",
        {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "version 1, mounted from elsewhere": (
        V1.replace(" / ", " /kubelet/pod "),
        "3:cpu,cpuacct:/docker/1",
        {"cpu,cpuacct/cpu.cfs_quota_us": "700000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        7,
    ),
    "both": (
        f"{V1}\n{V2.replace('{sys}', '{sys}/unified')}",
        "3:cpu,cpuacct:/a\n0::/b",
        {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "600000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "unified/b/cpu.max": "500000 100000",
        },
        5,
    ),
    "version 2, which has no cpu": (V2, "0::/a", {"a/cpu.stat": ""}, math.inf),
    **{
        f"nonsense in cpu.max: {text!r}": (V2, "0::/a", {"a/cpu.max": text}, math.inf)
        for text in ("", "\n", "1", "1 2 3", "-1 100000", "100000 0", "nan 1", "µ µ")
    },
    "nonsense in cgroup": (V2, "0\n::", {"cpu.max": "100000 100000"}, math.inf),
    "nonsense in mountinfo": ("\n - \n1 2 - cgroup2", "0::/", {}, math.inf),
    "an empty mountinfo": ("", "0::/", {}, math.inf),
}


@pytest.mark.parametrize(("mounts", "groups", "files", "expected"), SYSTEMS.values(), ids=SYSTEMS)
def test_limit_of_the_control_groups(mounts, groups, files, expected, tmp_path):
    top, process = tmp_path / "sys", tmp_path / "proc"
    process.mkdir()
    for name, text in (("mountinfo", mounts), ("cgroup", groups)):
        if text is not None:
            content = text.replace("{sys}", str(top)) + "\n"
            (process / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text, encoding="utf-8")
    assert processors.control_group_limit(str(process)) == expected


@pytest.fixture
def fresh():
    """What a process reads once is read anew, before and after."""

    def clear():
        processors.limits.cache_clear()
        processors.count.cache_clear()

    clear()
    yield
    clear()


def not_here(pid):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("cpus", "affinity", "control_group", "least"),
    [
        (16, lambda pid: range(12), math.inf, ("CPU affinity", 12)),
        (16, lambda pid: range(16), 8.0, ("control group", 8)),
        (16, lambda pid: range(16), 0.1, ("control group", 1)),
        (16, lambda pid: range(16), 1.5, ("control group", 2)),
        (16, lambda pid: range(16), 64.0, ("processors", 16)),
        (3, not_here, math.inf, ("processors", 3)),
        (3, None, math.inf, ("processors", 3)),
        (None, None, math.inf, ("processors", 1)),
    ],
)
def test_the_least_limit(cpus, affinity, control_group, least, monkeypatch, fresh):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    if affinity is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)
    monkeypatch.setattr(processors, "control_group_limit", lambda: control_group)
    limits = processors.limits()
    assert min(limits.items(), key=lambda item: item[1]) == least
    assert processors.count() == least[1]


FORKED = """
import os
import sigmoid_l2 as sl2

os.sched_getaffinity = lambda pid: {0, 1, 2}
os.cpu_count = lambda: 3
before = sl2.get_num_threads()
child = os.fork()
if child == 0:
    os.sched_getaffinity = lambda pid: {0}
    os._exit(sl2.get_num_threads())
print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sl2.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_reads_them_anew(monkeypatch):
    for variable in ("SIGMOID_L2_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    parent, child, after = map(int, run_python(FORKED, OPENBLAS_NUM_THREADS=1).split())
    assert child == 1
    assert parent == after
