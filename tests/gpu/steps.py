"""Each instruction of a kernel as a step that a group of threads of a block makes."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpu.instructions import OPERATIONS
from gpu.memory import WARP, WORD, FaultError
from gpu.ptx import SPECIAL, TYPES, Address, Instruction, Kernel, NotKnownError, Register

# step(block, mask of the group, index of its instruction) returns the index of the group's next instruction, or None if
# the group no longer exists, because its threads have parted, wait or have ended. ``block`` is a machine.Block.
Step = Callable[[Any, Any, int], int | None]
Reader = Callable[[Any], tuple[Any, Any]]  # read(block): an operand's values, and the threads for which it is undefined


@cache
def steps_of(kernel: Kernel) -> tuple[Step, ...]:
    """The steps of the kernel's instructions; NotKnownError with the line of one that is not known."""
    steps = []
    for instruction in kernel.code:
        try:
            steps.append(_step(kernel, instruction))
        except (NotKnownError, AttributeError, TypeError, ValueError) as error:  # operands of another kind
            raise NotKnownError(f"{instruction.line}: {error}") from error
    return tuple(steps)


def _step(kernel: Kernel, instruction: Instruction) -> Step:
    opcode, operands = instruction.opcode, instruction.operands
    if opcode in ("bra", "bra.uni") and operands[0] in kernel.labels:
        return _branch(kernel, instruction)
    if found := re.fullmatch(r"(ld|st)\.(global|shared)(?:\.cs)?(?:\.v([24]))?\.([bfsu]\d+)", opcode):
        return _access(kernel, instruction, *found.groups())
    if opcode in OPERATIONS and not any(isinstance(operand, tuple) for operand in operands):
        return _arithmetic(kernel, instruction)
    if instruction.predicate is None:
        if opcode == "ret":
            return _end
        if (opcode, operands) == ("bar.sync", ("0",)):
            return _barrier
        if opcode == "bar.warp.sync":
            return _meeting(_reader(kernel, operands[0], TYPES["u32"]))
        if opcode in ("shfl.sync.bfly.b32", "shfl.sync.idx.b32"):
            return _shuffle(kernel, instruction)
        if opcode == "mov.b64":
            return _pack(kernel, *operands) if isinstance(operands[1], tuple) else _unpack(kernel, *operands)
        if opcode.startswith("ld.param.") and opcode[9:] in TYPES:
            return _load_parameter(kernel, instruction, TYPES[opcode[9:]])
    raise NotKnownError(instruction.line)


# --- operands ------------------------------------------------------------------------------------------------------


def _reader(kernel: Kernel, operand: Any, dtype: np.dtype) -> Reader:
    if isinstance(operand, Register):
        k = operand.number
        if kernel.registers[k].itemsize != dtype.itemsize:
            raise NotKnownError(f"a register of {kernel.registers[k]} as {dtype}")
        return lambda block: (block.registers[k].view(dtype), block.undefined[k])
    if operand in SPECIAL:
        return lambda block: (block.special[operand].astype(dtype), block.none)
    constant = _constant(kernel, operand, dtype)
    return lambda block: (constant, block.none)


def _constant(kernel: Kernel, text: Any, dtype: np.dtype) -> Any:
    if text in kernel.shared:
        return dtype.type(kernel.shared[text][0])
    if not isinstance(text, str) or not re.fullmatch(r"0[fd][0-9A-Fa-f]+|-?(0x[0-9A-Fa-f]+|\d+)U?", text):
        raise NotKnownError(f"operand {text}")
    if text[:2] in ("0f", "0d"):
        return np.frombuffer(bytes.fromhex(text[2:])[::-1], dtype)[0]
    if dtype.kind == "b":
        return np.bool_(int(text))
    bits = int(text.rstrip("U"), 0) % 2 ** (8 * dtype.itemsize)
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]


def _activity(kernel: Kernel, instruction: Instruction) -> Callable[[Any, Any], Any]:
    """The function that tells which threads of a group execute an instruction."""
    if instruction.predicate is None:
        return lambda block, mask: mask
    read = _reader(kernel, instruction.predicate, TYPES["pred"])

    def active(block: Any, mask: Any) -> Any:
        condition, undefined = read(block)
        if (undefined & mask).any():
            raise FaultError("an undefined condition")
        return block.normal(mask & (condition != instruction.negated))

    return active


# --- where threads go ------------------------------------------------------------------------------------------------


def _branch(kernel: Kernel, instruction: Instruction) -> Step:
    activity, target = _activity(kernel, instruction), kernel.labels[instruction.operands[0]]

    def step(block: Any, mask: Any, at: int) -> int | None:
        taken = activity(block, mask)
        rest = block.normal(mask & ~taken)
        if taken is block.none or rest is block.none:
            return at + 1 if taken is block.none else target
        block.add(block.ready, target, taken)
        block.add(block.ready, at + 1, rest)
        return None

    return step


def _end(block: Any, mask: Any, at: int) -> None:
    block.exited = block.normal(block.exited | mask)


def _barrier(block: Any, mask: Any, at: int) -> None:
    block.add(block.at_barrier, at, mask)


def _go_on(block: Any, mask: Any, ready: Any, at: int) -> int | None:
    """Go on after a meeting, with the whole group or with the threads that are ready."""
    if ready is mask:
        return at + 1
    block.add(block.ready, at + 1, ready)
    return None


def _defined(block: Any, mask: Any, read: Reader) -> Any:
    """An operand of a meeting, for each thread."""
    value, undefined = read(block)
    if (undefined & mask).any():
        raise FaultError("an undefined lane or mask of lanes")
    return block.full(value)


def _meeting(members: Reader) -> Step:
    def step(block: Any, mask: Any, at: int) -> int | None:
        ready = block.meet(at, mask, _defined(block, mask, members))
        block.shared.meet(ready)
        return _go_on(block, mask, ready, at)

    return step


def _shuffle(kernel: Kernel, instruction: Instruction) -> Step:
    (target, in_range), *operands = instruction.operands
    value, *how = (_reader(kernel, operand, TYPES["u32"]) for operand in operands)
    by_xor = ".bfly." in instruction.opcode

    def step(block: Any, mask: Any, at: int) -> int | None:
        distance, clamp, names = (_defined(block, mask, read) for read in how)
        ready = block.meet(at, mask, names)
        if (clamp[ready] != WARP - 1).any():
            raise NotKnownError("a shuffle within a part of a warp")
        lane = block.ids % WARP
        source = block.ids - lane + ((lane ^ distance) if by_xor else distance).astype(int) % WARP
        if (ready & ~(ready[source] & (names[source] == names))).any():
            raise FaultError("a lane takes the value of one that does not take part")
        values, undefined = value(block)
        block.write(target, block.full(values)[source], block.normal(undefined[source]), ready)
        block.write(in_range, block.all, block.none, ready)
        return _go_on(block, mask, ready, at)

    return step


# --- what they compute -----------------------------------------------------------------------------------------------


def _arithmetic(kernel: Kernel, instruction: Instruction) -> Step:
    function, types, result = OPERATIONS[instruction.opcode]
    target, *sources = instruction.operands
    if not isinstance(target, Register) or len(sources) != len(types):
        raise NotKnownError(instruction.line)
    readers = [_reader(kernel, source, dtype) for source, dtype in zip(sources, types, strict=True)]
    activity, selects = _activity(kernel, instruction), instruction.opcode.startswith("selp.")
    divides = instruction.opcode.startswith(("div.", "rem."))

    def step(block: Any, mask: Any, at: int) -> int:
        values, undefined = zip(*[read(block) for read in readers], strict=True)
        unknown = block.union(undefined)
        if divides:  # by zero
            unknown = block.normal(unknown | block.full(values[1] == 0))
        if selects and unknown is not block.none:
            unknown = np.where(values[2], undefined[0], undefined[1]) | undefined[2]
        value = np.asarray(function(*values)).astype(result, copy=False)
        block.write(target, value, unknown, activity(block, mask))
        return at + 1

    return step


def _unpack(kernel: Kernel, parts: tuple[Register, Register], source: Any) -> Step:
    read = _reader(kernel, source, TYPES["u64"])

    def step(block: Any, mask: Any, at: int) -> int:
        value, undefined = read(block)
        for part, bits in zip(parts, (value, value >> np.uint64(32)), strict=True):
            if part != "_":  # a value that nobody wants
                block.write(part, bits.astype(np.uint32), undefined, mask)
        return at + 1

    return step


def _pack(kernel: Kernel, target: Register, parts: tuple[Any, Any]) -> Step:
    """The whole is undefined where one half is."""
    low, high = (_reader(kernel, part, TYPES["u32"]) for part in parts)

    def step(block: Any, mask: Any, at: int) -> int:
        (below, u), (above, v) = low(block), high(block)
        bits = below.astype(np.uint64) | above.astype(np.uint64) << np.uint64(32)
        block.write(target, bits, block.union((u, v)), mask)
        return at + 1

    return step


# --- memory ----------------------------------------------------------------------------------------------------------


def _load_parameter(kernel: Kernel, instruction: Instruction, dtype: np.dtype) -> Step:
    target, address = instruction.operands
    if not 0 <= address.offset <= dict(kernel.parameters).get(address.base, 0) - dtype.itemsize:
        raise NotKnownError(instruction.line)

    def step(block: Any, mask: Any, at: int) -> int:
        value = np.frombuffer(block.parameters[address.base], dtype, 1, address.offset)[0]
        block.write(target, value, block.none, mask)
        return at + 1

    return step


def _access(kernel: Kernel, instruction: Instruction, kind: str, space: str, width: str | None, type_name: str) -> Step:
    """A load or a store of neighbouring values."""
    write, shared = kind == "st", space == "shared"
    address, held = instruction.operands if write else instruction.operands[::-1]
    held = held if isinstance(held, tuple) else (held,)
    if not isinstance(address, Address) or type_name not in TYPES or len(held) != int(width or 1):
        raise NotKnownError(instruction.line)
    dtype, words = TYPES[type_name], TYPES[type_name].itemsize // WORD
    if not words:
        raise NotKnownError(instruction.line)
    size = len(held) * dtype.itemsize
    narrow = isinstance(address.base, Register) and kernel.registers[address.base.number].itemsize == 4
    base = _reader(kernel, address.base, TYPES["s32" if shared and narrow else "s64"])
    values = [_reader(kernel, part, dtype) for part in held] if write else []
    activity = _activity(kernel, instruction)

    def step(block: Any, mask: Any, at: int) -> int:
        active = activity(block, mask)
        if active is block.none:
            return at + 1
        bases, undefined = base(block)
        if (undefined & active).any():
            raise FaultError("an undefined address")
        addresses, who = block.full(bases)[active].astype(np.int64) + address.offset, block.ids[active]
        if (addresses % size).any():
            raise FaultError(f"address {addresses[addresses % size != 0][0]:#x} is no multiple of {size} bytes")
        if shared:
            block.shared.check(addresses, size, who, write)
            name, memory, offsets = None, block.shared.words, addresses
        else:
            start, name, memory = block.memory.find(addresses, size)
            offsets = addresses - start
            if start % dtype.itemsize or memory.nbytes % dtype.itemsize:
                raise NotKnownError(f"{dtype} of {name}, which does not begin or end between two of them")
            block.memory.touch(name, write, offsets, size, block.number * block.threads + who)
        if block.traffic is not None:
            block.traffic.add(name, write, who, offsets, size)
        elements = memory.view(dtype)
        of_words = block.shared.undefined.reshape(-1, words)  # of shared memory, by element
        for j, part in enumerate(held):
            index = offsets // dtype.itemsize + j
            if write:
                value, unknown = values[j](block)
                if not shared and (unknown & active).any():
                    raise FaultError("an undefined value in global memory")
                elements[index] = block.full(value)[active]
                if shared:
                    of_words[index] = unknown[active][:, None]
            else:
                value, unknown = np.zeros(block.threads, dtype), block.none.copy()
                value[active] = elements[index]
                if shared:
                    unknown[active] = of_words[index].any(axis=1)
                block.write(part, value, block.normal(unknown), active)
        return at + 1

    return step
