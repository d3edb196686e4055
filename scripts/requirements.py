"""Prints what pyproject.toml asks for: what a build needs, what a run needs, and the extras that are named.

    python scripts/requirements.py [EXTRA ...]

With these installed first, the package itself is built without isolation, against the jaxlib that it will run with: of
what a build needs, that is left out which a run needs too, in another version perhaps.
Needs nothing but the standard library.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Return requirements in pip's form; an extra that names others of this project stands for them.

    Raises:
        KeyError: there is no such extra.
    """
    name = project["project"]["name"]
    found = []
    for extra in extras:
        for requirement in project["project"]["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{re.escape(name)}\[(.*)\]", requirement)
            found += requirements(project, own[1].split(",")) if own else [requirement]
    needed = project["project"]["dependencies"]
    run = set(map(distribution, needed))
    return [*(each for each in project["build-system"]["requires"] if distribution(each) not in run), *needed, *found]


def distribution(requirement: str) -> str:
    """Return the name that a requirement begins with."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    with open(Path(__file__).parent.parent / "pyproject.toml", "rb") as file:
        print(*dict.fromkeys(requirements(tomllib.load(file), sys.argv[1:])), sep="\n")
