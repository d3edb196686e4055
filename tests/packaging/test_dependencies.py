"""Who imports whom, read from the sources, and what may be imported at all, read from installed packages."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import apex_jax
from apex_jax.scheduler import STRATEGIES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {package: ROOT / folder for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}

JAX = frozenset({"jax", "jaxlib", "flax"})
FORBIDDEN = {
    "apex_jax.scheduler": {"apex_jax.models", "apex_jax.host_offload", "numpy", *JAX},
    "apex_jax.models": {"apex_jax.scheduler", "apex_jax.host_offload"},
    "apex_jax.host_offload": {"apex_jax.scheduler", "apex_jax.models"},
}
"""Beside these, none of the three may import what is directly in apex_jax, but for what reads files."""

FILES = "apex_jax.files"

ABOVE = {
    "cost_model": {"strategies", "planner", "simulation", "experiment"},
    "strategies": {"planner", "simulation", "experiment"},
    "simulation": {"planner", "experiment"},
    "planner": {"experiment"},
}
"""What packages of the scheduler may not import of it."""

MEASURED_BESIDE = {"torch"}
"""Not brought by any dependency: benchmarks measure it where it happens to be installed."""


def modules():
    """Yield (module, file) of every module of the distribution."""
    for package, folder in FOLDERS.items():
        for file in sorted(folder.glob("*.py")):
            yield (package if file.stem == "__init__" else f"{package}.{file.stem}"), file


def imports(module, file):
    """Return the absolute names of everything a module imports, wherever in it."""
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def test_relative_imports_are_resolved(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    from .g.h import i\n", encoding="utf-8"
    )
    assert imports("top.sub.module", file) == {"a.b", "top.sub.c", "top.d.e", "top.sub.g.h.i"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction(package):
    for module, file in modules():
        if within(module, package):
            for name in imports(module, file):
                outside = within(name, "apex_jax") and not within(name, package) and not within(name, FILES)
                assert not outside, f"{module} imports {name}"
                assert not any(within(name, other) for other in FORBIDDEN[package]), f"{module} imports {name}"


def test_what_reads_files_imports_nothing_of_ours():
    for module, file in modules():
        if within(module, FILES):
            tops = {name.partition(".")[0] for name in imports(module, file) if not within(name, FILES)}
            assert tops <= sys.stdlib_module_names, f"{module} imports {tops - sys.stdlib_module_names}"


@pytest.mark.parametrize("inner", ABOVE)
def test_direction_within_the_scheduler(inner):
    for module, file in modules():
        if within(module, f"apex_jax.scheduler.{inner}"):
            for name in imports(module, file):
                above = [other for other in ABOVE[inner] if within(name, f"apex_jax.scheduler.{other}")]
                assert not above, f"{module} imports {name}"


def test_strategies_are_named_in_their_own_files():
    """Elsewhere their objects are, so that another strategy is a file and an entry."""
    for module, file in modules():
        if not within(module, "apex_jax.scheduler.strategies"):
            constants = (
                node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Constant)
            )
            named = [node.lineno for node in constants if node.value in STRATEGIES]
            assert not named, f"{module} names a strategy in lines {named}"


def test_the_scheduler_runs_without_jax_and_without_who_decides():
    script = "import sys, apex_jax.scheduler as s; print([m for m in sys.modules if m.startswith(s.__name__ + '.')])"
    script += "; assert not {'jax', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = ast.literal_eval(done.stdout)
    assert "apex_jax.scheduler.scheduler" in loaded
    above = [f"apex_jax.scheduler.{name}" for name in ("planner", "simulation", "experiment")]
    assert not [name for name in loaded if any(within(name, other) for other in above)]


def test_what_is_imported_is_declared():
    """By this package itself: what a dependency happens to bring may be gone with its next version."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["plot"], *extras["structured"]]
    declared = {distribution(text) for text in wanted}
    owners = packages_distributions()
    used = set()
    for module, file in modules():
        for name in imports(module, file):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "apex_jax":
                found = {canonical(owner) for owner in owners.get(top, ())} or {canonical(top)}
                assert found & (declared | MEASURED_BESIDE), f"{module} imports {name}, which is not declared"
                used |= found
    # jaxlib's version is asked for, and its headers are read.
    assert declared - {"jaxlib"} <= used, "declared and never imported"


def test_what_is_installed_is_what_is_declared():
    every = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["plot"]]
    for requirement in map(Requirement, every):
        assert requirement.specifier.contains(version(requirement.name)), requirement


def test_builds_use_the_oldest_headers():
    """A library built with newer ones would not run with the oldest JAX of the range."""
    (build,) = [each for each in map(Requirement, PROJECT["build-system"]["requires"]) if each.name == "jaxlib"]
    (run,) = [each for each in map(Requirement, PROJECT["project"]["dependencies"]) if each.name == "jaxlib"]
    (pinned,) = build.specifier
    assert pinned.operator == "=="
    assert {(each.operator, each.version) for each in run.specifier} >= {(">=", pinned.version)}


def test_the_requirements_that_make_installs_do_not_pin_what_a_run_has_freely():
    script = [sys.executable, ROOT / "scripts" / "requirements.py", "dev"]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    names = [distribution(line) for line in lines]
    assert len(names) == len(set(names)), "one distribution is asked for twice"
    assert set(PROJECT["project"]["dependencies"]) <= set(lines)
    assert {"setuptools", "matplotlib", "pytest"} <= set(names)


def distribution(requirement):
    return canonical(Requirement(requirement).name)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_public_names():
    assert all(getattr(apex_jax, name) is not None for name in apex_jax.__all__)
    assert set(apex_jax.__all__) <= set(dir(apex_jax))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = apex_jax.nonsense


def test_one_version():
    assert version("apex-jax") == apex_jax.__version__ == PROJECT["project"]["version"]


def test_every_package_is_listed():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == set(FOLDERS)
    for package, folder in FOLDERS.items():
        assert (folder / "__init__.py").is_file()
        for inner in folder.iterdir():
            if (inner / "__init__.py").is_file():
                assert f"{package}.{inner.name}" in FOLDERS


def test_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text or f"## [{apex_jax.__version__}]" in text


def links():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield page.relative_to(ROOT), target


def test_links_of_the_documentation_lead_somewhere():
    assert [(page, target) for page, target in links() if not (ROOT / page).parent.joinpath(target).exists()] == []
