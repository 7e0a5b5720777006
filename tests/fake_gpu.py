"""The streams of a GPU that is not there: queues, whose operations run in an order that a test chooses.

Only events order two streams. So where a wait is missing, or memory is used again too early, some order gives wrong
results. ``reset`` chooses the order; without it every operation runs as soon as it may.

``log`` has what the GPU was told, whether or not it has run: ("record", event, handle), ("wait", handle, event),
("kernel", handle), ("synchronize",) and ("allocate", bytes). ``ran`` has the operations that did run.
"""

from collections import defaultdict

log, ran = [], []
_queues = defaultdict(list)  # the operations of each stream, by its handle
_devices, _streams = [0], [0]  # the current ones are the last


class Operation:
    """One entry of a queue: what it is, what it runs, and the operation that it waits for (an event's)."""

    def __init__(self, kind, run=lambda: None, after=None):
        self.kind, self.run, self.after, self.done = kind, run, after, False


def early(runnable, waiting):
    """Every operation as soon as it may."""
    return runnable[0] if runnable else None


def reset(order=early):
    """Forget all streams. ``order`` chooses one of the operations that may run now, or None to run none without need.

    It is asked when something is queued, and, with ``waiting``, when the host waits for something.
    """
    global _order
    _order = order
    for state in (log, ran, _queues):
        state.clear()


reset()


def queue(stream, operation):
    _queues[stream.handle].append(operation)
    while _run(_order(_runnable(), waiting=False)):
        pass
    return operation


def finish(operation):
    """Run until it is done: what the order chooses, or else what must come before it."""
    log.append(("synchronize",))
    while operation and not operation.done:
        runnable = _runnable()
        _run(_order(runnable, waiting=True) or next(o for o in runnable if o in _needed(operation)))


def pending(*kinds):
    """The operations of these kinds that have not run."""
    return [o for operations in _queues.values() for o in operations if not o.done and o.kind in kinds]


def _runnable():
    """The first operation of each stream, where what it waits for is done."""
    first = (next((o for o in operations if not o.done), None) for operations in _queues.values())
    return [o for o in first if o and (o.after is None or o.after.done)]


def _run(operation):
    if operation is not None:
        operation.done = True
        ran.append(operation)
        run, operation.run = operation.run, None  # which refers to memory
        run()
    return operation is not None


def _needed(operation):
    """The operation and all before it, in its stream and in those that they wait for."""
    (operations,) = (operations for operations in _queues.values() if operation in operations)
    before = [o for o in operations[: operations.index(operation) + 1] if not o.done]
    return before + [o for b in before if b.after and not b.after.done for o in _needed(b.after)]


class Device:
    """A device by its number; as a context manager it is the current one."""

    def __init__(self, number=None):
        self.id = _devices[-1] if number is None else number

    def __eq__(self, other):
        return self.id == other.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        _devices.append(self.id)
        return self

    def __exit__(self, *_):
        _devices.pop()


class Event:
    """An event by its name."""

    names = iter(range(10**9))
    recorded = None

    def __init__(self, disable_timing=False):
        self.name = next(self.names)

    def record(self, stream):
        log.append(("record", self.name, stream.handle))
        self.recorded = queue(stream, Operation("record"))

    def wait(self, stream):
        stream.wait_event(self)

    def synchronize(self):
        finish(self.recorded)


class Stream:
    """A stream by its handle; as a context manager it is the current one."""

    handles = iter(range(1000, 10**9))
    capturing = ()  # handles

    def __init__(self, non_blocking=False, handle=None):
        self.ptr = self.handle = next(self.handles) if handle is None else handle

    @classmethod
    def from_external(cls, other):
        return cls(handle=other.__cuda_stream__()[1])

    def __cuda_stream__(self):
        return 0, self.handle

    def __enter__(self):
        _streams.append(self.handle)
        return self

    def __exit__(self, *_):
        _streams.pop()

    def is_capturing(self):
        return self.handle in self.capturing

    def wait_event(self, event):
        log.append(("wait", self.handle, event.name))
        if event.recorded is not None:
            queue(self, Operation("wait", after=event.recorded))

    def synchronize(self):
        finish(_queues[self.handle][-1] if _queues[self.handle] else None)


def current():
    """The (device, stream) that a kernel launched now would run on."""
    return _devices[-1], _streams[-1]
