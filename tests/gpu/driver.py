"""numba-cuda without a GPU: driver.c in place of CUDA's driver, and every launch executed by the PTX interpreter.

Call ``load()`` before anything loads CUDA. The driver records its calls, and can be told to fail.
"""

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_void_p
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np

from gpu import machine, ptx
from gpu.memory import Global

DEVICE_MEMORY, *_ = KINDS = range(4)  # kinds of things that a call could leave behind; driver.c names them
MOST_ALIVE = 4096  # of one kind
OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 700, 719


def compiler():
    """The system's C compiler, or None."""
    names = filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))
    return next(filter(None, map(shutil.which, names)), None)


@cache
def load():
    """The driver of this process. Because of its name, whatever loads libcuda.so.1 from now on gets it."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "libcuda.so.1")
        options = ("-shared", "-fPIC", "-O1", "-pthread", f"-Wl,-soname,{library.name}", "-o", library)
        subprocess.run([compiler(), *options, Path(__file__).with_suffix(".c"), "-ldl"], check=True)
        return Driver(ctypes.CDLL(library))


def error(function):
    """The error code of a function that is told to fail."""
    return OUT_OF_MEMORY if "Alloc" in function else LAUNCH_FAILED if "Launch" in function else ILLEGAL_ADDRESS


class Driver:
    """The driver as Python sees it."""

    def __init__(self, library):
        self.library = library
        self.calls = []  # (function, stream) of each call that may fail
        self.faults = []  # what the interpreter has found
        self._kernels, self._failing = {}, (None, range(0), count())
        told = CFUNCTYPE(c_int, c_char_p, c_void_p)(self._told)
        launched = CFUNCTYPE(c_int, c_char_p, c_int, c_int, POINTER(c_void_p))(self._launched)
        library.driver_connect(told, launched)
        self._kept = told, launched  # C calls them, and has no reference
        atexit.register(library.driver_connect, None, None)  # the driver is called even after Python has ended
        self.cuda = import_module("numba.cuda")
        import_module("numba.cuda.codegen").CUDACodeLibrary.get_cubin = lambda code, cc=None: self._linked(code, cc)

    def _linked(self, code, cc):
        """What numba-cuda loads: PTX after link-time optimisation, from which the machine code would be made."""
        text = code.get_lto_ptx(cc) if code._lto else code.get_asm_str(cc)
        self._kernels[code._entry_name] = ptx.parse(text)
        return import_module("cuda.core").ObjectCode.from_ptx(text.encode())

    def alive(self, kind):
        """(address, bytes) of everything of a kind that exists."""
        firsts, sizes = (ctypes.c_ulonglong * MOST_ALIVE)(), (ctypes.c_size_t * MOST_ALIVE)()
        found = self.library.driver_alive(kind, MOST_ALIVE, firsts, sizes)
        return list(zip(firsts[:found], sizes[:found], strict=True))

    def failing(self, function, numbers):
        """A context in which calls of ``function``, or of any (None), fail: those whose number is in ``numbers``."""
        return mock.patch.object(self, "_failing", (function, numbers, count()))

    def _told(self, function, stream):
        function = function.decode()
        self.calls.append((function, stream or 0))
        name, numbers, calls = self._failing
        return error(function) if name in (None, function) and next(calls) in numbers else 0

    def _launched(self, name, blocks, threads, arguments):
        """Execute a kernel, which may use all device memory that exists."""
        try:
            memory, kernel = Global(), self._kernels[name.decode()]
            for first, size in self.alive(DEVICE_MEMORY):
                array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(first))
                memory.add(f"{size} bytes at {first:#x}", array)
            parameters = [ctypes.string_at(arguments[k], size) for k, (_, size) in enumerate(kernel.parameters)]
            machine.launch(kernel, blocks, threads, parameters, memory)
        except BaseException as fault:  # it cannot go through C
            self.faults.append(fault)
            return LAUNCH_FAILED
        return 0
