"""Reads the text of a compiled program: its kernels, and the bytes that they read and write in device memory.

A kernel is an instruction of the entry computation (or of a loop's body, once for each round) that is no mere name for
something. Of each it counts the operands and results, less what it need not touch: of an operand that it only gathers
or slices from, what it takes; of a result that is its operand updated in place, the update. What stays in a cache
between two kernels is counted as if it went through memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_NAMES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"),
    *("async-done", "async-update", "copy-done"),
}
_MOVES = {
    *("bitcast", "broadcast", "concatenate", "convert", "copy", "dynamic-slice", "gather", "get-tuple-element"),
    *("pad", "reshape", "select", "slice", "transpose", "tuple"),
}
_TAKES = ("gather", "dynamic-slice", "slice")
_UPDATES = ("dynamic-update-slice", "scatter")

COPIED = 2**16
"""Bytes from which a kernel that only moves weights or KV is called a copy."""


class Shape(NamedTuple):
    """An array of a program."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.dims)

    @property
    def width(self) -> float:
        """Bytes of an element."""
        bits = _BITS.get(self.dtype)
        return (int(re.sub(r"\D.*", "", self.dtype.lstrip("abcfsu"))) if bits is None else bits) / 8

    @property
    def nbytes(self) -> float:
        """Bytes of all."""
        return self.elements * self.width


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
        shapes: its result, an array or several.
        operands: names of instructions.
        text: what follows the operands.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def nbytes(self) -> float:
        """Bytes of the result."""
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return sum(shape.elements for shape in self.shapes)

    @property
    def number(self) -> int:
        """Which parameter it is, of those of its computation."""
        return int(self.text.split(")")[0])

    def called(self, key: str) -> tuple[str, ...]:
        """Return the computations that an attribute names."""
        found = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|(%[\w.\-]+))", self.text)
        return tuple(re.findall(r"%([\w.\-]+)", found[0])) if found else ()


Computation = Mapping[str, Instruction]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A kernel that moves a weight or KV without computing anything.

    Attributes:
        kernel: its name.
        of: the parameter that it copies.
        nbytes: of the copy, in one execution of the program.
    """

    kernel: str
    of: str
    nbytes: int


@dataclass(kw_only=True)
class Traffic:
    """What the kernels of a program do.

    Attributes:
        kernels: how many run.
        read, written: bytes.
        copies: kernels among them that only copy.
    """

    kernels: int = 0
    read: float = 0.0
    written: float = 0.0
    copies: list[Copy] = field(default_factory=list)

    def add(self, other: Traffic, times: int = 1) -> None:
        """Count another's too, so many times."""
        self.kernels += times * other.kernels
        self.read += times * other.read
        self.written += times * other.written
        self.copies += [Copy(kernel=c.kernel, of=c.of, nbytes=times * c.nbytes) for c in other.copies]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program.

    Attributes:
        entry: name of the computation that runs.
        computations: all of them.
        updated_in_place: indices of parameters whose memory a result takes.
    """

    entry: str
    computations: Mapping[str, Computation]
    updated_in_place: frozenset[int]

    @property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters of the whole program, by index."""
        found = [i for i in self.computations[self.entry].values() if i.opcode == "parameter"]
        return {parameter.number: parameter for parameter in found}


def read_program(text: str) -> Program:
    """Read the text that `jax.stages.Compiled.as_text` gives for a GPU.

    Raises:
        ValueError: it is no such text.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"no entry computation in {len(text)} characters of compiled text")
    alias = re.search(r"input_output_alias=\{(.*?\)) \}", text)
    aliased = re.findall(r": \((\d+),", alias[1]) if alias else []
    return Program(entry=entry, computations=computations, updated_in_place=frozenset(map(int, aliased)))


def _instruction(line: str) -> Instruction:
    root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) if rest[0] == "(" else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(n) for n in re.findall(r"\d+", dims)))
        for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", rest[:end])
    )
    opcode, _, arguments = rest[end:].strip().partition("(")
    arguments = f"({arguments}"
    close = _closing(arguments)
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", arguments[:close]))
    text = arguments[1:] if opcode == "parameter" else arguments[close:]
    return Instruction(
        name=name.removeprefix("%"), opcode=opcode, shapes=shapes, operands=operands, text=text, root=root
    )


def _closing(text: str) -> int:
    """Return the index behind the bracket that closes the first."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")


Origin = str | None | Sequence["Origin"]
"""The parameter of the program that an instruction is, as it was or updated; of a tuple one for each element."""


class _Reader:
    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, name: str, parameters: Mapping[int, Origin]) -> tuple[Traffic, Origin]:
        """Return the traffic of a computation's kernels and the origin of its result."""
        computation = self.program.computations[name]
        traffic, origins, result = Traffic(), {}, None
        for instruction in computation.values():
            origins[instruction.name] = self._origin(instruction, origins, parameters)
            self._count(instruction, computation, origins, traffic)
            if instruction.root:
                result = origins[instruction.name]
        return traffic, result

    def _origin(
        self, instruction: Instruction, origins: Mapping[str, Origin], parameters: Mapping[int, Origin]
    ) -> Origin:
        of = [origins.get(operand) for operand in instruction.operands]
        match instruction.opcode:
            case "parameter":
                return parameters.get(instruction.number)
            case "tuple":
                return of
            case "get-tuple-element":
                index = re.search(r"index=(\d+)", instruction.text)
                return of[0][int(index[1])] if index and isinstance(of[0], list) else None
            case "bitcast" | "while" | "async-done":
                return of[0]
            case "opt-barrier":
                return of[0] if len(of) == 1 else of
            case "fusion":
                fused = self.program.computations[instruction.called("calls")[0]]
                places = [_place_of(fused, name) for name in _results(fused)]
                found = [of[place] if place is not None else None for place in places]
                return found if len(found) > 1 else found[0]
            case _:
                return None

    def _count(
        self, instruction: Instruction, computation: Computation, origins: Mapping[str, Origin], traffic: Traffic
    ) -> None:
        opcode = instruction.opcode
        if opcode in _NAMES:
            return
        if opcode == "while":
            body, _ = self.run(instruction.called("body")[0], {0: origins[instruction.operands[0]]})
            traffic.add(body, _rounds(instruction))
        elif opcode in ("call", "async-start", "conditional"):
            found = [self.run(name, given)[0] for name, given in self._branches(instruction, origins)]
            traffic.add(max(found, key=lambda one: one.read + one.written))
        else:
            self._kernel(instruction, computation, origins, traffic)

    def _branches(
        self, instruction: Instruction, origins: Mapping[str, Origin]
    ) -> Iterator[tuple[str, Mapping[int, Origin]]]:
        """Yield the computations that may run, and the origins of their parameters."""
        of = [origins.get(operand) for operand in instruction.operands]
        if instruction.opcode != "conditional":
            yield from ((name, dict(enumerate(of))) for name in instruction.called("(?:to_apply|calls)"))
            return
        branches = instruction.called("branch_computations")
        if not branches:
            branches = instruction.called("true_computation") + instruction.called("false_computation")
        yield from ((name, {0: origin}) for name, origin in zip(branches, of[1:], strict=True))

    def _kernel(
        self, instruction: Instruction, computation: Computation, origins: Mapping[str, Origin], traffic: Traffic
    ) -> None:
        operands = [computation[name] for name in instruction.operands]
        written = instruction.nbytes
        read: Sequence[float] = [operand.nbytes for operand in operands]
        moves = instruction.opcode in ("copy", "copy-start", "transpose", "convert")
        if instruction.opcode == "fusion":
            fused = self.program.computations[instruction.called("calls")[0]]
            read, written, moves = _read_by(fused, len(operands)), _written_by(fused), _only_moves(fused)
        elif instruction.opcode == "custom-call":
            # Bytes beside a result are a library's workspace.
            written = sum(s.nbytes for s in instruction.shapes if s.dtype != "s8" or len(instruction.shapes) == 1)
        traffic.kernels += 1
        traffic.read += sum(read)
        traffic.written += written
        if not moves or instruction.root or written < COPIED:
            return
        for operand, origin, taken in zip(operands, map(origins.get, instruction.operands), read, strict=True):
            # A row of the embedding that is looked up is no copy of the table.
            if isinstance(origin, str) and (is_cache(origin) or 2 * taken > operand.nbytes):
                traffic.copies.append(Copy(kernel=instruction.name, of=origin, nbytes=int(written)))


def is_cache(parameter: str) -> bool:
    """Return whether a parameter of a device program is a KV cache, by its name."""
    return re.match(r"(caches?|kv)(?![a-z])", parameter) is not None


def is_weight(parameter: str) -> bool:
    """Return whether it is an array of the model."""
    return re.search(r"kernel|table|scale|bias", parameter) is not None and "packed" not in parameter


def traffic_of(program: Program) -> Traffic:
    """Count what one execution of a program does."""
    named = {
        index: parameter.name if is_cache(parameter.name) or is_weight(parameter.name) else None
        for index, parameter in program.parameters.items()
    }
    return _Reader(program).run(program.entry, named)[0]


def _rounds(loop: Instruction) -> int:
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    return int(known[1]) if known else 1


def _results(fused: Computation) -> tuple[str, ...]:
    root = next(instruction for instruction in fused.values() if instruction.root)
    return root.operands if root.opcode == "tuple" else (root.name,)


def _update_of(fused: Computation, name: str) -> Instruction | None:
    """Return the update in place that a result is, behind mere changes of its shape."""
    instruction = fused[name]
    while instruction.opcode == "bitcast":
        instruction = fused[instruction.operands[0]]
    return instruction if instruction.opcode in _UPDATES else None


def _place_of(fused: Computation, name: str) -> int | None:
    instruction = _update_of(fused, name)
    while instruction is not None and instruction.opcode in (*_UPDATES, "bitcast"):
        instruction = fused[instruction.operands[0]]
    if instruction is None or instruction.opcode != "parameter":
        return None
    return instruction.number


def _written_by(fused: Computation) -> float:
    written = 0.0
    for name in _results(fused):
        update = _update_of(fused, name)
        if update is None or _place_of(fused, name) is None:
            written += fused[name].nbytes
        else:
            operand = 1 if update.opcode == "dynamic-update-slice" else -1
            written += fused[update.operands[operand]].nbytes
    return written


def _only_moves(fused: Computation) -> bool:
    """Return whether a fusion computes no number but places and masks."""
    return all(
        instruction.opcode in _MOVES
        or instruction.opcode in ("parameter", "constant", "iota")
        or all(shape.dtype in ("pred", "s32", "u32") for shape in instruction.shapes)
        for instruction in fused.values()
    )


def _read_by(fused: Computation, count: int) -> list[float]:
    """Return the bytes that a fusion takes of each operand: what its results need, each element once."""
    needed = dict.fromkeys(fused, 0.0)
    for name in _results(fused):
        needed[name] = float(fused[name].elements)
    for instruction in reversed(tuple(fused.values())):
        for operand, elements in _needs(instruction, fused, min(needed[instruction.name], instruction.elements)):
            needed[operand] += elements
    read = [0.0] * count
    for instruction in fused.values():
        if instruction.opcode == "parameter" and instruction.shapes:
            taken = min(needed[instruction.name], instruction.elements)
            read[instruction.number] = taken * instruction.shapes[0].width
    return read


def _needs(instruction: Instruction, fused: Computation, needed: float) -> Iterator[tuple[str, float]]:
    """Yield the elements of each operand that so many of the result are made of."""
    if instruction.opcode in ("parameter", "constant", "iota", "tuple") or not needed:
        return
    share = needed / max(instruction.elements, 1)
    first, *others = instruction.operands
    if instruction.opcode in _TAKES:
        yield first, needed
        yield from ((operand, fused[operand].elements) for operand in others)
    elif instruction.opcode in _UPDATES:
        # What is not updated stays where it is.
        yield from ((operand, fused[operand].elements) for operand in others)
    else:
        yield from ((operand, share * fused[operand].elements) for operand in chain([first], others))
