"""A framework for cuda_numba.py on top of numba's CUDA simulator: warp shuffles, wide accesses, and a record of them.

numba's simulator runs one OS thread a CUDA thread and has no shuffles. Here a barrier and a shuffle that a thread of
theirs never reaches is an error, not a hang; memory that was never written is NaN; every access is checked, and
recorded for ``traffic.count`` where a test asks for it.

``install`` must run before sigmoid_l2.kernels.cuda_numba is imported.
"""

import sys
import threading
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import traffic
from numba import config as config  # for cuda_numba.py
from numba import cuda, float32, float64
from numba.cuda.simulator import kernel as numbas_kernel
from numba.cuda.simulator import kernelapi
from numba.np import numpy_support

from sigmoid_l2.kernels import cuda_launch

REALS = {4: float32, 8: float64}
# cuda_launch's constants for simulated launches: every class of kernel is met by small pairs and small blocks.
SMALL = {
    "WARP": 4,
    "ROW_BYTES": 32,
    "LANE_BYTES": 48,
    "LANE_PAIRS_BYTES": 16,
    "STAGED_THREADS": 8,
    "UNIT_BYTES": 256,
    "BLOCK_THREADS": 8,
    "LONG_ROW_THREADS": 16,
    "FLIGHT_BYTES": 32,
    "TEAM_ROWS": 2,
    "SLICE_BYTES": 512,
    "MAX_SLICES": 3,
    "WORKSPACE_BYTES": 512,
}
REAL = {name: getattr(cuda_launch, name) for name in SMALL}
KERNELS = "cuda_numba_"  # the beginning of the names of their files
PATIENCE = 60  # seconds; only a thread in an endless loop lets it pass


# --- what framework_numba_cuda.py offers --------------------------------------------------------------------------


def kernel(function, threads, blocks):
    """A kernel."""
    return cuda.jit(function)


def device(function):
    """Called as what it is."""
    return function


def current_device():
    """The only one."""
    return 0


def address(array):
    """Where a device array begins."""
    return array.ctypes.data


def shuffle_xor(value, lanes):
    """What the lane ``lanes`` away holds."""
    thread = threading.current_thread()
    return thread.warp.exchange(thread.thread_id % cuda_launch.WARP, lanes, value)


def multiply_add(a, b, c):
    """a * b + c, rounded once in float32 and twice in float64."""
    with np.errstate(over="ignore"):
        return type(c)(float(a) * float(b) + float(c))


def about_reciprocal(value):
    """1 / value; rounded as the instruction rounds, to 23 bits or so."""
    return type(value)(np.float32(1) / np.float32(value))


def forget_memory():
    """Of no use here."""


def _mover(count):
    """Copies ``count`` elements in one access."""

    def move(target, to, source, at):
        values = source.read(at, count) if isinstance(source, Memory) else source[at : at + count]
        if isinstance(target, Memory):
            target.write(to, values)
        else:
            assert len(values) == len(target[to : to + count]) == count
            target[to : to + count] = values

    return move


MOVERS = {count: _mover(count) for count in (1, 2, 4)}


# --- threads ------------------------------------------------------------------------------------------------------


class MissingThreadError(Exception):
    """A barrier or a shuffle is not reached by every thread."""


class Meeting:
    """A barrier that fails when one of its threads has ended."""

    def __init__(self, members):
        self.members, self.arrived, self.times, self.ended = members, 0, 0, False
        self.changed = threading.Condition()

    def wait(self):
        with self.changed:
            now = self.times
            self.arrived += 1
            if self.arrived == self.members:
                self.arrived = 0
                self.times += 1
                self.changed.notify_all()
            elif not self.changed.wait_for(lambda: self.times > now or self.ended, PATIENCE) or self.times == now:
                raise MissingThreadError(MissingThreadError.__doc__)

    def leave(self):
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class Warp(Meeting):
    """Threads that shuffle."""

    def __init__(self, members):
        super().__init__(members)
        self.slots = [[None] * members, [None] * members]  # in turn: a lane may write while another still reads

    def exchange(self, lane, lanes, value):
        slots = self.slots[self.times % 2]
        slots[lane] = lanes, value
        self.wait()
        theirs = slots[lane ^ lanes]
        assert theirs[0] == lanes, "lanes of a warp are at different shuffles"
        return theirs[1]


class Block:
    """In place of numba's BlockManager, which polls its threads."""

    def __init__(self, function, grid_dim, block_dim, debug):
        self._block_dim, self.function, self.debug = block_dim, function, debug

    def run(self, block, *args):
        count, warp = self._block_dim[0], cuda_launch.WARP
        assert self._block_dim[1:] == (1, 1)
        assert count % warp == 0
        everyone, warps = Meeting(count), [Warp(warp) for _ in range(count // warp)]
        threads = []
        for t in range(count):
            thread = Thread(lambda: self.function(*args), self, block, (t, 0, 0), self.debug)
            thread.meetings = everyone, warps[t // warp]
            thread.warp, thread.syncthreads = warps[t // warp], everyone.wait
            threads.append(thread)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [thread.exception for thread in threads if thread.exception]
        # A thread's own error comes first: it is why the others missed it.
        for error, trace in sorted(errors, key=lambda e: isinstance(e[0], MissingThreadError)):
            raise error.with_traceback(trace)


class Thread(numbas_kernel.BlockThread):
    """A thread that lets the others know that it has ended."""

    def run(self):
        """Run the kernel."""
        super().run()
        for meeting in self.meetings:
            meeting.leave()


# --- memory -------------------------------------------------------------------------------------------------------


class Memory:
    """An array of global or shared memory as a kernel sees it."""

    recorder = None

    def __init__(self, array, shared=None):
        self.flat, self.shared = array.reshape(-1), shared

    @classmethod
    def of_argument(cls, argument):
        """In place of numba's FakeWithinKernelCUDAArray."""
        return cls(argument._ary)

    def read(self, at, count):
        """The elements [at, at + count)."""
        self._touch(at, count, write=False)
        return self.flat[at : at + count]

    def write(self, at, values):
        """Write the elements from ``at`` on."""
        self._touch(at, len(values), write=True)
        self.flat[at : at + len(values)] = values

    def __getitem__(self, at):
        return self.read(at, 1)[0]

    def __setitem__(self, at, value):
        self.write(at, [value])

    def _touch(self, at, count, write):
        if not 0 <= at <= len(self.flat) - count:
            raise IndexError(f"{at} .. {at + count - 1} of {len(self.flat)} elements")
        itemsize = self.flat.itemsize
        if self.shared or Memory.recorder is not None:
            aligned = at * itemsize if self.shared else self.flat.ctypes.data + at * itemsize
            assert aligned % (count * itemsize) == 0, "an access is not aligned"
        if Memory.recorder is not None:
            Memory.recorder(self, at * itemsize, count * itemsize, write)


class SharedArrays:
    """In place of numba's FakeCUDAShared: an array for each line, of NaN, and aligned."""

    def __init__(self, dynshared_size):
        self.arrays, self.lock = {}, threading.Lock()

    def array(self, shape, dtype, alignment):
        """The block's array of the calling line."""
        line = sys._getframe(1).f_lineno
        with self.lock:
            if line not in self.arrays:
                array = np.full(shape, np.nan, numpy_support.as_dtype(dtype))
                self.arrays[line] = Memory(array, shared=f"shared array {len(self.arrays)}")
        return self.arrays[line]


class LocalArrays:
    """In place of numba's FakeCUDALocal: of NaN."""

    def array(self, shape, dtype):
        """A thread's own array."""
        return np.full(shape, np.nan, numpy_support.as_dtype(dtype))


def place():
    """The lines of the kernels' files that led here, the kernel's own last."""
    frame, lines = sys._getframe(2), []
    while frame is not None:
        if Path(frame.f_code.co_filename).name.startswith(KERNELS):
            lines.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


@contextmanager
def recorded(names):
    """Record the accesses of each kernel and block; ``names`` are those of global arrays, device arrays by name."""
    accesses = defaultdict(list)
    by_address = {address(array): name for name, array in names.items()}

    def record(memory, offset, size, write):
        thread, lines = threading.current_thread(), place()
        name = memory.shared or by_address.get(memory.flat.ctypes.data, "workspace")
        accesses[lines[-1][0], thread.blockIdx.x].append(
            traffic.Access(thread.thread_id, lines, name, bool(memory.shared), write, offset, size)
        )

    Memory.recorder = record
    try:
        yield accesses
    finally:
        Memory.recorder = None


def launch_with(constants):
    """Give cuda_launch these constants from now on."""
    for name, value in constants.items():
        setattr(cuda_launch, name, value)
    cuda_launch.plan.cache_clear()
    if "sigmoid_l2.kernels.cuda_numba" in sys.modules:
        from sigmoid_l2.kernels import cuda_numba

        for kernel in (cuda_numba._staged, cuda_numba._rows, cuda_numba._long, cuda_numba._finish):
            kernel.cache_clear()


def install():
    """Take the places of numba's own parts, and of framework_numba_cuda.py."""
    numbas_kernel.BlockManager = Block
    numbas_kernel.FakeWithinKernelCUDAArray = Memory.of_argument
    kernelapi.FakeCUDAShared = SharedArrays
    kernelapi.FakeCUDALocal = LocalArrays
    kernelapi.FakeCUDAModule.syncwarp = lambda module: threading.current_thread().warp.wait()
    sys.modules["sigmoid_l2.kernels.framework_numba_cuda"] = sys.modules[__name__]
    launch_with(SMALL)
