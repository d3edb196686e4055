"""Limits of templates that strangers wrote: what a rendering may do, and how large what it makes may become.

Jinja's sandbox keeps templates away from Python; it does not end those that loop, repeat, pad or recurse. Whatever can
make something large is checked before it does, and all that is done is counted, so that limits hold in any thread and
do not depend on how fast a machine is.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from string import Formatter
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEPS = 300_000
"""What a rendering may do beside what its conversation allows: loop passes, calls, operations, `_CHARACTERS` each."""

SIZE = 2_000_000
"""Characters that a text may have, the output included, beside what the conversation allows; an item of a list counts
as `_ITEM` characters and what it holds, as often as it is there."""

_STEPS_EACH, _SIZE_EACH = 16, 4
"""Further ones for each character of the conversation."""

_WRITTEN = 4
"""Times that what is written may pass through macros and blocks before it is output."""

_CHARACTERS = 64
_ITEM = 16
_LONGEST_NUMBER = 4096
_WIDEST = 9999
_MOST_ROWS = 100_000


class LimitError(Exception):
    """A template does or makes too much."""


class Drawn(Iterator[Any]):
    """What a filter yields, drawn already: an iterator whose size is known."""

    def __init__(self, items: list[Any]):
        self._items = items
        self._rest = iter(items)

    def __next__(self) -> Any:
        return next(self._rest)


class Budget:
    """Counts what one rendering does.

    Args:
        values: what the template is given; the limits grow with it.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._weights: dict[int, tuple[Any, int]] = {}
        self._steps, self._written, self.size = 1 << 62, 0, 1 << 62
        given = sum(self.weight(value) for value in values.values())
        self._steps, self.size = STEPS + _STEPS_EACH * given, SIZE + _SIZE_EACH * given

    def spend(self, steps: int = 1) -> None:
        """Count steps."""
        self._steps -= steps
        if self._steps < 0:
            raise LimitError("it does too much: loops, calls or operations do not come to an end")

    def check(self, size: int) -> None:
        """Refuse to make something of that many characters."""
        if size > self.size:
            raise LimitError(f"it makes something of {size:,} characters; at most {self.size:,} are allowed here")

    def weight(self, value: Any) -> int:
        """Return how many characters a value would have as a text, about, and nothing of it counted once only."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 8 + 1
        self.spend()
        if isinstance(value, range):
            return _ITEM * len(value)
        if isinstance(value, Namespace):
            return self._total(object.__getattribute__(value, "_Namespace__attrs").values())
        if isinstance(value, Mapping):
            return self._kept(value, (part for item in value.items() for part in item))
        if isinstance(value, Drawn):
            return self._kept(value, value._items)
        if isinstance(value, Collection):
            return self._kept(value, value)
        return _ITEM

    def _kept(self, value: Any, items: Iterable[Any]) -> int:
        """Return the weight of what cannot change, found once; it is kept alive, so that its `id` is nobody else's."""
        if id(value) not in self._weights:
            self._weights[id(value)] = (value, self._total(items))
        return self._weights[id(value)][1]

    def _total(self, items: Iterable[Any]) -> int:
        total = 0
        for item in items:
            if isinstance(item, Namespace):
                raise LimitError("it puts a namespace into something")
            self.spend()
            total += _ITEM + self.weight(item)
            self.check(total)
        return total

    def touch(self, *values: Any) -> None:
        """Count passing over values, all that is in them included."""
        for value in values:
            self.spend(1 + self.weight(value) // _CHARACTERS)

    def pass_over(self, *values: Any) -> None:
        """Count passing over values, but not over what is in their items."""
        for value in values:
            self.spend(1 + (len(value) // _ITEM if isinstance(value, Sized) else 0))

    def made(self, value: Any) -> Any:
        """Return what has been made, counted and checked; iterators as `Drawn`."""
        if isinstance(value, Iterator) and not isinstance(value, Drawn | LoopContext):
            value = Drawn(self._draw(value))
        self.check(self.weight(value))
        self.pass_over(value._items if isinstance(value, Drawn) else value)
        return value

    def _draw(self, values: Iterator[Any]) -> list[Any]:
        drawn = []
        for value in values:
            self.spend()
            drawn.append(value)
        return drawn

    def write(self, value: Any) -> Any:
        """Return what is written, counted and checked."""
        self.touch(value)
        self._written += self.weight(value)
        self.check(self._written // _WRITTEN)
        return value


def check_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large."""
    if operator == "%" and isinstance(left, str):
        check_percent(budget, left, right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if operator in ("*", "**") and bits > _LONGEST_NUMBER:
            raise LimitError(f"it makes a number of {bits:,} bits; at most {_LONGEST_NUMBER:,} are allowed")
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(sequence, str | bytes | list | tuple):
                budget.check((budget.weight(sequence) + 1) * times)
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        budget.check(budget.weight(left) + budget.weight(right))
        budget.pass_over(left, right)


def check_percent(budget: Budget, text: str, values: Any) -> None:
    """Refuse formats such as "%0999999999d", whose width is not that of any value."""
    found = re.findall(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?", text)
    if any("*" in numbers or any(len(number) > len(str(_WIDEST)) for number in numbers) for numbers in found):
        raise LimitError(f"the format {text[:40]!r} has a width that is not a number of at most {_WIDEST}")
    widths = sum(int(number) for numbers in found for number in numbers if number)
    times = len(found) if isinstance(values, Mapping) else 1
    budget.check(len(text) + widths + times * budget.weight(values))


def check_braces(budget: Budget, text: str, *values: Any) -> None:
    """Refuse formats such as "{:999999999}", and those whose widths are values."""
    fields = [(spec or "") for _, name, spec, _ in Formatter().parse(text) if name is not None]
    if any("{" in spec or re.search(r"\d{5}", spec) for spec in fields):
        raise LimitError(f"the format {text[:40]!r} has a width that is not a number of at most {_WIDEST}")
    widths = 2 * _WIDEST * sum(spec != "" for spec in fields)
    budget.check(len(text) + widths + len(fields) * sum(budget.weight(value) for value in values))


def check_insertion(budget: Budget, text: Any, old: Any, new: Any) -> None:
    """Refuse to put something long (a text, or so many spaces) where something is there often."""
    length = len(new) if isinstance(new, str | bytes) else abs(new) if isinstance(new, int) else 0
    if (isinstance(text, str) and isinstance(old, str)) or (isinstance(text, bytes) and isinstance(old, bytes)):
        budget.check(len(text) + (text.count(old) + 1) * length)  # type: ignore[arg-type]


def check_join(budget: Budget, between: Any, items: Any) -> None:
    """Refuse to join many items by something long."""
    sized = items._items if isinstance(items, Drawn) else items
    budget.check(budget.weight(items) + (len(sized) if isinstance(sized, Sized) else 0) * budget.weight(between))
    budget.touch(items)


def check_number(what: str, value: Any, most: int) -> None:
    """Refuse a size that nothing needs."""
    if isinstance(value, int) and abs(value) > most:
        raise LimitError(f"{what} is {value if abs(value) < 1 << 64 else 'a very large number'}; at most {most:,}")


class Counting(NodeTransformer):
    """Makes a parsed template count what no method of an environment sees.

    A pass of a loop or of a macro costs a step; operands of comparisons, parts of `~` and what is sliced go through
    filters of these names; text between tags is written as expressions are.
    """

    STEP, SEEN, JOINED, SLICED = "_step", "_seen", "_joined", "_sliced"

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count passes, and items that are left out by the loop's own condition."""
        if node.test is not None:
            node.test = self._through(node.test, self.SEEN)
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Count calls."""
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        """Count calls back."""
        return self._counted(node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        """Write text as a constant, which `finalize` sees."""
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Join by a filter."""
        self.generic_visit(node)
        return self._through(nodes.List(node.nodes, lineno=node.lineno), self.JOINED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Count what is compared."""
        self.generic_visit(node)
        node.expr = self._through(node.expr, self.SEEN)
        for operand in node.ops:
            operand.expr = self._through(operand.expr, self.SEEN)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Count what is sliced."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._through(node.node, self.SLICED)
        return node

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = self._through(nodes.Const(None, lineno=node.lineno), self.STEP)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    def _through(self, node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
