"""As much of CuPy as the host side of the library touches, in host memory: it stands in where there is no GPU.

``ndarray`` is a NumPy array of another type, so the library must keep it apart from NumPy's; the current device and
stream are recorded, so that a test can see on which one a kernel would have run.
"""

import contextlib
from types import SimpleNamespace

import numpy as np

_current = {"device": 0, "stream": 0}


class Device:
    """A device by its number; as a context manager it is the current one."""

    def __init__(self, number):
        self.id = number

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        self._before = _current["device"]
        _current["device"] = self.id
        return self

    def __exit__(self, *_):
        _current["device"] = self._before


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """A NumPy array that says it is on a device."""

    number = 0

    def __array_finalize__(self, base):
        self.number = getattr(base, "number", _current["device"])

    @property
    def device(self):
        return Device(self.number)


@contextlib.contextmanager
def _external_stream(handle):
    before, _current["stream"] = _current["stream"], handle
    try:
        yield SimpleNamespace(ptr=handle)
    finally:
        _current["stream"] = before


def current():
    """The (device, stream) that a kernel launched now would run on."""
    return _current["device"], _current["stream"]


cuda = SimpleNamespace(
    is_available=lambda: True,
    get_current_stream=lambda: SimpleNamespace(ptr=_current["stream"]),
    ExternalStream=_external_stream,
    Stream=lambda: SimpleNamespace(ptr=77),
    Device=Device,
)
may_share_memory = np.may_share_memory


def asarray(a, dtype=None):
    return np.array(a, dtype=dtype).view(ndarray)


def empty(shape, dtype):
    return np.empty(shape, dtype).view(ndarray)


def asnumpy(a):
    return np.array(a)


def copyto(to, values):
    assert isinstance(to, ndarray)
    assert isinstance(values, ndarray), "a device array is filled from a device array"
    np.copyto(to.view(np.ndarray), values.view(np.ndarray), casting="same_kind")
