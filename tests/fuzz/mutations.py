"""Files that are nearly right: changes of bytes, of JSON, and templates drawn from a grammar. All take a `Random`."""

import copy
import json
import struct
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 8, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**12)
"""Where counts, sizes and offsets go wrong."""

DEEP = {f"@deep{levels}@": "[" * levels + "]" * levels for levels in (60, 70, 900, 100_000)}
"""Lists that `json.dumps` cannot write, by the texts that stand for them."""

VALUES = (
    *(None, True, False, "", "0", "x" * 1000, "\ud800", "../x", "/", "\0", "é", [], [[]], [None], {}, {"a": {}}),
    *(
        0.0,
        0.5,
        -1.5,
        1e-320,
        1e300,
        1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
        10**40,
        10**300,
        10**400,
        -(10**310),
    ),
    *NUMBERS,
    *DEEP,
)


def mutate_bytes(random: Random, content: bytes, *, within: int | None = None) -> bytes:
    """Change some bytes.

    Args:
        random: what is drawn from.
        content: any file.
        within: changes begin in that many first bytes; anywhere if None.
    """
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        end = min(len(changed), within or len(changed))
        place, length = random.randrange(end + 1), random.choice((1, 2, 4, 8, 64))
        match random.randrange(7):
            case 0:
                changed[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                changed[place : place + 8] = struct.pack("<Q", random.choice(NUMBERS) % 2**64)
            case 2:
                changed[place : place + 4] = struct.pack("<I", random.choice(NUMBERS) % 2**32)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = bytes(length) if random.random() < 0.5 else random.randbytes(length)
            case 5:
                other = random.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + length]
            case 6 if random.random() < 0.3:
                del changed[random.randrange(len(changed) + 1) :]
    return bytes(changed)


def mutate_json(random: Random, content: str) -> str:
    """Change some values and names of a JSON text, and seldom its characters."""
    holder = [json.loads(content)]
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _places(holder)
        parent, key = random.choice(places)
        match random.randrange(8):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[random.choice(("", "x", "é", "a" * 600, *map(str, _keys(places))))] = parent.pop(key)
            case 2:
                other, at = random.choice(places)
                parent[key] = json.loads(json.dumps(other[at]))
            case 3 if isinstance(parent[key], list) and len(parent[key]) < 50:
                parent[key] = parent[key] * random.choice((2, 50, 200))
            case 4:
                parent[key] = [parent[key]] if random.random() < 0.5 else {"a": parent[key]}
            case 5 if isinstance(parent[key], int | float) and abs(parent[key]) < 1e18:
                parent[key] = parent[key] * random.choice((-1, 2, 0.5, 1e9, 2**31, 1e300)) + random.choice((0, 1, -1))
            case _:
                parent[key] = copy.deepcopy(random.choice(VALUES))
    text = json.dumps(holder[0])
    for label, deep in DEEP.items():
        text = text.replace(f'"{label}"', deep, 3)
    if random.random() < 0.1:
        text = mutate_bytes(random, text.encode()).decode("utf-8", "surrogateescape")
    return text


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Return every value of a tree as what holds it and its key there."""
    found, waiting = [], [holder]
    while waiting:
        outer = waiting.pop()
        for key, value in list(outer.items() if isinstance(outer, dict) else enumerate(outer)):
            found.append((outer, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def _keys(places: list[tuple[Any, Any]]) -> list[Any]:
    return [key for _, key in places]


_NAMES = ("messages", "messages[0]", "bos_token", "ns.s", "ns.t", "v", "loop.index0", "tools", "missing", "loop")
_LITERALS = (
    "''",
    "'abc'",
    "'x,y z'",
    "1.5",
    "none",
    "true",
    "[]",
    "[1, 'a']",
    "{'a': 1}",
    "(1, 2)",
    "'%s %5d'",
    "'{:>9} {}'",
)
_SIZES = ("0", "1", "-1", "9", "300", "99999", "10**6", "10**9", "10**18", "2**70")
_FILTERS = """
    abs attr('x') batch({n}) capitalize center({n}) count default({e}) dictsort escape filesizeformat first float
    format({e}) groupby(0) indent({n}) int items join({e}) last length list lower map('{f}') max min random reject
    replace({e},{e}) reverse round({n}) safe select slice({n}) sort string sum tojson tojson(indent={n}) title trim
    truncate({n}) unique upper urlencode wordcount map('center',{n}) map(attribute={e}) select('in',{e})
    """.split()  # noqa: SIM905 quotes within quotes would hide what is in it
_METHODS = """
    upper() center({n}) ljust({n}) zfill({n}) expandtabs({n}) replace({e},{e}) join({e}) split({e}) rsplit({e})
    rfind({e}) format({e},{e}) format_map({e}) encode({e}) count({e}) items() get({e}) startswith({e}) strip()
    to_bytes({n},'big') partition({e}) splitlines() title() translate({e}) keys() index({e})
    """.split()  # noqa: SIM905
_OPERATORS = ("+", "-", "*", "**", "/", "//", "%", "~", "==", "<", "in", "and", "or")


def template(random: Random) -> str:
    """Return a template that nobody has written, most of whose expressions make something."""
    start = "{% set ns = namespace(s='xy', t=[1, 'a']) %}{% set v = 'v' %}"
    return start + "".join(_statement(random, 3) for _ in range(random.randint(1, 5)))


def _statement(random: Random, depth: int) -> str:
    inner = "".join(_statement(random, depth - 1) for _ in range(random.randint(1, 2))) if depth else "x"
    e = _expression(random, 3)
    return random.choice(
        (
            f"{{{{ {e} }}}}",
            f"{{{{ {e} }}}}",
            f"{{% set ns.{random.choice('st')} = {e} %}}",
            f"{{% set v = {e} %}}",
            f"{{% for v in {_iterable(random)} %}}{inner}{{% endfor %}}",
            f"{{% for v in {_iterable(random)} %}}{inner}{{% endfor %}}",
            f"{{% for v in {_iterable(random)} if {e} %}}{inner}{{% else %}}y{{% endfor %}}",
            f"{{% for v in {_iterable(random)} recursive %}}{{{{ loop({_iterable(random)}) }}}}{{% endfor %}}",
            f"{{% if {e} %}}{inner}{{% endif %}}",
            f"{{% macro m(a) %}}{inner}{{% endmacro %}}{{{{ m({e}) }}}}",
            f"{{% macro m(a) %}}{{{{ m(a) }}}}{inner}{{% endmacro %}}{{{{ m({e}) }}}}",
            f"{{% set v %}}{inner}{{% endset %}}",
            f"{{% filter {_filled(random, random.choice(_FILTERS), 1)} %}}{inner}{{% endfilter %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}",
        )
    )


def _iterable(random: Random) -> str:
    return random.choice((f"range({random.choice(_SIZES)})", "messages", _expression(random, 2), "ns.t"))


def _expression(random: Random, depth: int) -> str:
    if depth == 0 or random.random() < 0.15:
        return random.choice((random.choice(_NAMES), random.choice(_LITERALS), random.choice(_SIZES)))
    e = _expression(random, depth - 1)
    match random.randrange(7):
        case 0 | 1:
            return f"({e} {random.choice(_OPERATORS)} {_expression(random, depth - 1)})"
        case 2 | 3:
            return f"({e}|{_filled(random, random.choice(_FILTERS), depth - 1)})"
        case 4:
            return f"({e}).{_filled(random, random.choice(_METHODS), depth - 1)}"
        case 5:
            return f"[{e}, {_expression(random, depth - 1)}, {e}]"
        case _:
            return f"({e})[{random.choice(('0', '-1', ':', '::-1', '1:', e))}]"


def _filled(random: Random, form: str, depth: int) -> str:
    while "{e}" in form:
        form = form.replace("{e}", _expression(random, depth), 1)
    return form.replace("{n}", random.choice(_SIZES)).replace(
        "{f}", random.choice(("upper", "list", "tojson", "length"))
    )
