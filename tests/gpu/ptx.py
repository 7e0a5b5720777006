"""PTX, the compilers' common output, read into kernels that ``machine`` executes.

What is not known is an error that shows the line: nothing is skipped but what describes and does nothing.
"""

import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np

TYPES = {
    f"{letter}{8 * size}": np.dtype(f"{kind}{size}") for letter, kind in ("uu", "si", "bu", "ff") for size in (4, 8)
}
TYPES["pred"] = np.dtype(bool)
TYPES |= {"b16": np.dtype("u2"), "u16": np.dtype("u2")}  # of registers, not of memory
SPECIAL = ("%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x")  # registers that the hardware fills; launches have one axis
IGNORED = (
    "",
    ".pragma",
    ".loc",
    ".file",
    ".section",
    ".version",
    ".target",
    ".address_size",
    ".maxntid",
    ".minnctapersm",
)


class NotKnownError(Exception):
    """PTX that this interpreter does not know."""


@dataclass(frozen=True)
class Register:
    """A register by its number in the kernel."""

    number: int


@dataclass(frozen=True)
class Address:
    """[base + offset]; the base is a register, or the name of a parameter or of shared memory."""

    base: Register | str
    offset: int


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``operands`` are registers, addresses, tuples of them, and other operands as text."""

    opcode: str
    operands: tuple
    predicate: Register | None
    negated: bool
    line: str  # as it stands in the text, for messages


@dataclass(eq=False)
class Kernel:
    """The one entry of a PTX text."""

    name: str
    parameters: list[tuple[str, int]]  # name and bytes
    registers: list[np.dtype] = field(default_factory=list)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: first byte and bytes
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name: index in the code
    most_threads: int = 1024  # of a block, .maxntid

    @property
    def shared_bytes(self) -> int:
        """Of a block's shared memory."""
        return max((first + size for first, size in self.shared.values()), default=0)


@cache
def parse(text: str) -> Kernel:
    """The kernel of a PTX text; NotKnownError with the line where anything is not known."""
    text = re.sub(r"//[^\n]*", "", text.replace("\0", ""))
    entries = re.findall(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*)", text, re.DOTALL)
    if len(entries) != 1 or re.search(r"\.func\b", text):
        raise NotKnownError("not one entry without functions")
    ((name, parameters, rest),) = entries
    kernel = Kernel(name, [_parameter(p) for p in parameters.split(",")])
    head, _, body = rest.partition("{")
    for line in head.splitlines():
        _require(line.strip().partition(" ")[0] in IGNORED, line)
        if found := re.match(r"\s*\.maxntid\s+(\d+)", line):
            kernel.most_threads = int(found[1])
    for declaration in re.findall(r"^\s*\.shared[^;]*;", text.partition(".entry")[0], re.MULTILINE):
        _declare_shared(kernel, declaration.strip(" ;"))
    names: dict[str, Register] = {}
    types: dict[str, np.dtype] = {}  # of registers, by what is before their number
    for statement in re.split(r"[;\n]|(?<=:)\s", body):
        if statement.strip() not in ("{", "}"):  # braces alone bound the scope of a %temp
            _read(kernel, statement.strip(), names, types)
    return kernel


def _require(known: bool, line: str) -> None:
    if not known:
        raise NotKnownError(line)


def _parameter(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.([bus]\d+|f\d+)\s+([\w$]+)(?:\[(\d+)\])?\s*", text)
    _require(found is not None, text)
    return found[2], int(found[1][1:]) // 8 * int(found[3] or 1)


def _declare_shared(kernel: Kernel, line: str) -> None:
    """An array of bytes, or one value."""
    found = re.fullmatch(r"\.shared\s+\.align\s+(\d+)\s+\.(?:b8|f(\d+))\s+([\w$]+)(?:\[(\d+)\])?", line)
    _require(found is not None and (found[2] is None) == (found[4] is not None), line)
    align, size = int(found[1]), int(found[4] or int(found[2]) // 8)
    kernel.shared[found[3]] = -(-kernel.shared_bytes // align) * align, size


def _read(kernel: Kernel, line: str, names: dict, types: dict) -> None:
    """Take one statement into the kernel."""
    if line.partition(" ")[0] in IGNORED:
        return
    if found := re.fullmatch(r"([$\w]+):", line):
        kernel.labels[found[1]] = len(kernel.code)
    elif found := re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+?)(?:<\d+>)?", line):
        _require(found[1] in TYPES, line)
        types[found[2]] = TYPES[found[1]]
        if "<" not in line:  # one register, perhaps of a name that another scope has as well
            names.pop(found[2], None)
    elif line.startswith(".shared"):
        _declare_shared(kernel, line)
    else:
        found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", line)
        _require(found is not None, line)
        negated, predicate, opcode, operands = found.groups()

        def operand(text: str):
            text = text.strip()
            if text.startswith("{"):
                return tuple(operand(part) for part in text.strip("{}").split(","))
            if text.startswith("["):
                base, _, offset = text.strip("[] ").partition("+")
                return Address(operand(base), int(offset or 0))
            if "|" in text:
                return tuple(operand(part) for part in text.split("|"))
            if not text.startswith("%") or text in SPECIAL:
                return text
            if text not in names:
                kind = types.get(text) or types.get(text.rstrip("0123456789"))
                _require(kind is not None, line)
                names[text] = Register(len(kernel.registers))
                kernel.registers.append(kind)
            return names[text]

        parts = re.findall(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+)", operands)
        kernel.code.append(
            Instruction(
                opcode, tuple(map(operand, parts)), operand(predicate) if predicate else None, negated == "!", line
            )
        )
