"""What can be named: the accelerators, hosts and models that ship with the project, and people's own in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ...files.bounded_json import brief, read_json, shown
from .hardware import DeviceSpec, HostSpec, ModelShape
from .known_hardware import DEVICES, HOSTS, MODELS, USUAL_HOST


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What can be named on a command line.

    Attributes:
        devices, hosts, models: by name.
    """

    devices: Mapping[str, DeviceSpec]
    hosts: Mapping[str, HostSpec]
    models: Mapping[str, ModelShape]

    @classmethod
    def built_in(cls) -> Catalogue:
        """Return what ships with the project."""
        return cls(
            devices={device.name: device for device in DEVICES},
            hosts={host.name: host for host in HOSTS},
            models={model.name: model for model in MODELS},
        )

    def extended(self, file: Path) -> Catalogue:
        """Return the catalogue with a file's entries added; entries of the same name, see `device`, are replaced.

        The file is a JSON object with any of the lists `devices`, `hosts` and `models`. Their objects have the
        attributes of `DeviceSpec`, `HostSpec` and `ModelShape` as keys.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file, a number in it is not usable, or two of its entries have one name.
        """
        content = _read_object(file)
        try:
            return Catalogue(
                devices=_with(self.devices, [_entry(DeviceSpec, item) for item in _list(content, "devices")]),
                hosts=_with(self.hosts, [_entry(HostSpec, item) for item in _list(content, "hosts")]),
                models=_with(self.models, [_entry(ModelShape, item) for item in _list(content, "models")]),
            )
        except ValueError as error:
            raise ValueError(f"{file}: {brief(error)}") from error

    def device(self, name: str) -> DeviceSpec:
        """Return the device of that name; large letters do not matter, nor do spaces and underscores for hyphens.

        Raises:
            ValueError: there is none.
        """
        return _look_up("device", self.devices, name)

    def host_beside(self, device: DeviceSpec) -> HostSpec:
        """Return the host that is assumed beside a device where none is named.

        Raises:
            ValueError: none is known to go with it.
        """
        if device.name not in USUAL_HOST:
            raise ValueError(
                f"no host is known to go with device {device.name!r}; name one, known are {', '.join(self.hosts)}"
            )
        return self.host(USUAL_HOST[device.name])

    def host(self, name: str) -> HostSpec:
        """Return the host of that name; see `device`."""
        return _look_up("host", self.hosts, name)

    def model(self, name: str) -> ModelShape:
        """Return the model of that name; see `device`."""
        return _look_up("model", self.models, name)


_Named = TypeVar("_Named", DeviceSpec, HostSpec, ModelShape)


def _look_up(kind: str, known: Mapping[str, _Named], name: str) -> _Named:
    found = {plain_name(key): value for key, value in known.items()}.get(plain_name(name))
    if found is None:
        raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(sorted(known))}")
    return found


def _with(known: Mapping[str, _Named], own: Sequence[_Named]) -> dict[str, _Named]:
    names = [plain_name(spec.name) for spec in own]
    for place, spec in enumerate(own):
        if (first := names.index(names[place])) != place:
            raise ValueError(f"two entries have one name, {own[first].name!r} and {spec.name!r}")
    kept = {name: spec for name, spec in known.items() if plain_name(name) not in names}
    return kept | {spec.name: spec for spec in own}


def plain_name(name: str) -> str:
    """Return a name in the form by which it is found: large letters do not matter, nor spaces and underscores."""
    return name.lower().replace("_", "-").replace(" ", "-")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; an object is needed")
    unknown = sorted(set(content) - {"devices", "hosts", "models"})
    if unknown:
        raise ValueError(f"{file} has the key {shown(unknown[0])}; allowed are devices, hosts, models")
    return content


def _list(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = content.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{key} must be a list of objects")
    return items


def _entry(kind: type[_Named], item: Mapping[str, Any]) -> _Named:
    """Make an entry of a JSON object, refusing keys that it does not have."""
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"an entry has the name {name!r}; text is needed")
    known = [f.name for f in fields(kind)]
    for key in item:
        if key not in known:
            raise ValueError(f"{name!r} has the key {key!r}; allowed are {', '.join(known)}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in needed if key not in item]:
        raise ValueError(f"{name!r} lacks the key{'s'[: len(missing) > 1]} {', '.join(missing)}")
    values = dict(item)
    if "linear_ms" in values:
        values["linear_ms"] = _points(name, values["linear_ms"])
    sources = values.get("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(source, str) and source for source in sources.values()):
        raise ValueError(f"{name!r}: sources is {sources!r}; an object of texts is needed")
    return kind(**values)


def _points(name: str, points: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"{name!r}: linear_ms must be a list of [rows, milliseconds]")
    return tuple((rows, ms) for rows, ms in points)
