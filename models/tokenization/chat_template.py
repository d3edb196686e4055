"""Chat templates: Jinja that comes with a model, rendered in a sandbox and within limits."""

import datetime
import functools
import json
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ...files.bounded_json import brief, shown
from ..errors import ChatTemplateError
from . import template_limits as limits
from .template_limits import Budget, Counting, LimitError

LONGEST = 1 << 16
"""Characters of a template: three times the longest of published models."""

_LEFT_OUT = ("urlize", "wordwrap", "striptags", "pprint", "xmlattr")
"""Filters for web pages, whose time grows faster than their text."""

_PASSING = {
    "length",
    "count",
    "first",
    "last",
    "list",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "default",
}
_PASSING |= {"d", "batch", "slice", "items", "reverse", "random", "attr", Counting.SLICED, Counting.STEP}
"""Filters that do not look into the items of what they are given."""

_MOST = {"center": 100_000, "indent": 100_000, "batch": 100_000, "slice": 100_000, "round": 100, "tojson": 100}
"""The largest number that a filter may be given."""


class ChatTemplate:
    """The template of a conversation.

    Args:
        source: Jinja, with what transformers offers to templates.
        name: of the model it comes with, for errors.

    Attributes:
        source: as given.
    """

    def __init__(self, source: str, name: str):
        self.source, self._name = source, name
        # Renderings in one thread follow each other: an environment for each thread is one for each budget.
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, (self.source, self._name)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text of a conversation.

        Args:
            values: what the template may use, as plain data: `messages`, `add_generation_prompt` and so on.

        Raises:
            ChatTemplateError: it is no template, refuses the messages, or goes beyond the limits of `template_limits`.
        """
        try:
            template = self._compiled()
            template.environment.budget = Budget(values)  # type: ignore[attr-defined]
            return template.render(values)
        except Exception as error:  # what a template does wrong raises whatever Python raises there
            raise ChatTemplateError(
                f"the chat template of {self._name} refuses these messages: {_reason(error)}"
            ) from error

    def _compiled(self) -> Template:
        if not hasattr(self._of_thread, "template"):
            if len(self.source) > LONGEST:
                raise LimitError(f"it has {len(self.source):,} characters; at most {LONGEST:,} are read")
            self._of_thread.template = _Environment().from_string(self.source)
        return self._of_thread.template


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests or calls itself too deeply"
    return brief(error) or type(error).__name__


class _Generation(Extension):
    """`{% generation %}` says what an assistant wrote, for training; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 of Jinja's class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body, lineno=line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict`, without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, whose names do not begin with underscores."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: Any, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace's name must not begin with an underscore, got {shown(name)}")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, each of whose doings is counted in a budget."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self):
        self.budget = Budget({})
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            # Constants would be computed, and their size checked by nobody, while the template is compiled.
            optimized=False,
            finalize=_written,
        )
        own = {"tojson": _to_json, Counting.STEP: _same, Counting.SEEN: _same, Counting.SLICED: _same}
        joined = {Counting.JOINED: _joined}
        filters = {name: function for name, function in self.filters.items() if name not in _LEFT_OUT}
        for name, function in (filters | own | joined).items():
            self.filters[name] = self._counted(name, function)
        for name in _LEFT_OUT:
            del self.filters[name]
        for name, function in list(self.tests.items()):
            self.tests[name] = self._counted(name, function, is_test=True)
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        source = Counting().visit(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def _counted(self, name: str, function: Callable[..., Any], *, is_test: bool = False) -> Callable[..., Any]:
        """Return a filter or test that checks what it is given, and counts that and what it returns."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0
        passing = name in _PASSING

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            budget, given = self.budget, (*args[skipped:], *kwargs.values())
            (budget.pass_over if passing else budget.touch)(*given)
            if not is_test:
                _check_filter(budget, name, given[0] if given else None, given[1:])
            return budget.made(function(*args, **kwargs))

        return counted

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Count looking up."""
        self.budget.spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Count looking up."""
        self.budget.spend()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check and count an operation."""
        limits.check_operation(self.budget, operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Check and count a call."""
        budget, owner = __self.budget, getattr(__obj, "__self__", None)
        budget.spend()
        if isinstance(__obj, types.BuiltinMethodType) and owner is not None:
            given = (*args, *kwargs.values())
            budget.touch(owner, *given)
            _check_method(budget, __obj.__name__, owner, given)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check the widths of a text's formats."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            limits.check_braces(self.budget, value.__self__, *args, *kwargs.values())
            return wrapped(*args, **kwargs)

        return checked


def _check_filter(budget: Budget, name: str, value: Any, given: tuple[Any, ...]) -> None:
    """Check what a filter could make much of little with."""
    if isinstance(value, LoopContext) and name not in ("default", "d"):
        raise LimitError(f"it gives a loop to the filter {name}")
    for number in given if name in _MOST else ():
        limits.check_number(f"a number given to {name}", number, _MOST[name])
    if name == "join":
        limits.check_join(budget, "".join(map(str, given)), value)
    elif name == "format":
        limits.check_percent(budget, str(value), dict(enumerate(given)))
    elif name == "indent":
        limits.check_insertion(budget, value, "\n", given[0] if given else 4)
    elif name == "replace":
        limits.check_insertion(budget, str(value), *given[:2])
    elif name == Counting.JOINED:
        budget.check(budget.weight(value))


def _check_method(budget: Budget, name: str, owner: Any, given: tuple[Any, ...]) -> None:
    """Check what a method of Python's own types could make much of little with, or take long for."""
    if name in ("translate", "maketrans"):
        raise LimitError(f"{name} is not offered to templates")
    if name in ("encode", "decode"):
        if unknown := [codec for codec in given[:1] if codec not in ("utf-8", "utf8", "ascii")]:
            raise LimitError(f"{name} is offered for utf-8 and ascii, not for {shown(unknown[0])}")
    elif name in ("rfind", "rindex", "rsplit", "rpartition"):
        # From the right Python searches without tricks, in the product of both lengths.
        budget.spend(budget.weight(owner) * max(map(budget.weight, given), default=0) // 4096)
    elif name == "join":
        limits.check_join(budget, owner, *given)
    elif name == "expandtabs":
        limits.check_insertion(budget, owner, "\t", given[0] if given else 8)
    elif name == "replace":
        limits.check_insertion(budget, owner, *given[:2])
    elif name in ("center", "ljust", "rjust", "zfill", "to_bytes"):
        for number in given:
            limits.check_number(f"a number given to {name}", number, budget.size)


@pass_context
def _written(context: Any, value: Any) -> Any:
    return context.environment.budget.write(value)


def _same(value: Any) -> Any:
    return value


def _joined(parts: list[Any]) -> str:
    return "".join(map(str, parts))


def _raise(message: Any) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
