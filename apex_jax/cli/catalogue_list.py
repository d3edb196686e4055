"""What `apex-jax simulate --list` prints: everything that can be named, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scheduler.cost_model.catalogue import Catalogue
    from ..scheduler.cost_model.hardware import DeviceSpec, HostSpec, ModelShape


def catalogue_lines(catalogue: Catalogue) -> Iterator[str]:
    """Yield every number of every device, host and model as lines for people.

    Beside a number of a device or a host stands its source, that it is an assumption, or that it has no source.
    """
    for title, specs in (("devices", catalogue.devices), ("hosts", catalogue.hosts)):
        yield title
        for spec in specs.values():
            yield f"  {spec.name}"
            yield from _numbers(spec)
    yield "models, by their sizes"
    for model in catalogue.models.values():
        yield _sizes(model)


def _numbers(spec: DeviceSpec | HostSpec) -> Iterator[str]:
    for field in fields(spec):
        value = getattr(spec, field.name)
        # An engine without published linear times has none of the two.
        if field.name in ("name", "sources") or (field.name.startswith("linear_") and not value):
            continue
        unknown = "no source given" if field.default is MISSING or value != field.default else "assumed: the default"
        shown = f"{len(value)} points" if isinstance(value, tuple) else f"{value:g}"
        yield f"    {field.name:<20} {shown:>10}  {spec.sources.get(field.name, unknown)}"


def _sizes(model: ModelShape) -> str:
    numbers = f"{model.weight_bytes} bytes a weight, {model.kv_bytes} a number of KV"
    tied = ", output head tied to the embedding" if model.tied else ""
    return f"  {model.name:<16} {model.weights_bytes / 1e9:7.1f} GB of weights, {model}, {numbers}{tied}"
