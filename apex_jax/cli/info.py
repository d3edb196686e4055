"""`apex-jax info`: what was found on this machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from typing import Any

from .. import __version__
from ..machine.versions import installed_versions
from .machine import find_host
from .report import in_bytes

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "gguf", "matplotlib", "torch")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "info",
        help="say what was found: devices, memory, kernels, models",
        description="Say what was found: versions, devices and their memory, the host, the attention kernel, models.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    facts = find_all()
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    return 0


def find_all() -> dict[str, Any]:
    """Return everything that was found, in types that JSON has."""
    return {
        "versions": {"apex-jax": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "devices": _devices(),
        "host": asdict(find_host()),
        "kernel": _kernel(),
        "models": _models(),
        "presets": _presets(),
    }


def _versions() -> dict[str, str | None]:
    found = installed_versions(_PACKAGES)
    return {package: found.get(package) for package in _PACKAGES}


def _devices() -> list[dict[str, Any]]:
    import jax

    from ..execution.attention_backend import default_dtype

    devices = []
    for device in jax.devices():
        # The CPU backend keeps no such count: its memory is the host's.
        memory = device.memory_stats() or {}
        devices.append(
            {
                "name": f"{device.platform}:{device.id}",
                "kind": device.device_kind,
                "default": device == jax.devices()[0],
                "default_dtype": default_dtype(device),
                "memory_bytes": memory.get("bytes_limit"),
                "memory_in_use_bytes": memory.get("bytes_in_use"),
            }
        )
    return devices


def _kernel() -> dict[str, Any]:
    from ..host_offload import machine_instructions
    from ..host_offload.native_library import absence

    instructions = machine_instructions()
    return {"native": instructions is not None, "instructions": instructions, "absent_because": absence() or None}


def _models() -> dict[str, Any]:
    from ..models.loading import registry

    folder = registry.cache_folder()
    known = {}
    for name, model in registry.REGISTERED.items():
        path = folder / model.file
        known[name] = {"file": str(path), "bytes": path.stat().st_size if os.path.isfile(path) else None}
    return {"cache": str(folder), "registered": known}


def _presets() -> dict[str, Any]:
    from ..models import PRESETS

    return {
        name: {
            "parameters": config.num_parameters,
            "layers": config.num_hidden_layers,
            "query_heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_position_embeddings,
        }
        for name, config in PRESETS.items()
    }


def as_text(facts: dict[str, Any]) -> str:
    """Return the facts for a person."""
    sections = (
        ("Versions", _version_lines(facts["versions"])),
        ("Devices", [_device_line(device) for device in facts["devices"]]),
        ("Host", _host_lines(facts["host"], facts["kernel"])),
        ("Models", _model_lines(facts["models"])),
        ("Presets, for --load-format dummy", [_preset_line(*item) for item in facts["presets"].items()]),
    )
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections)


def _version_lines(versions: dict[str, str | None]) -> list[str]:
    present = [f"{package} {number}" for package, number in versions.items() if number is not None]
    absent = [package for package, number in versions.items() if number is None]
    return [", ".join(present), *([f"not installed: {', '.join(absent)}"] if absent else [])]


def _device_line(device: dict[str, Any]) -> str:
    memory = device["memory_bytes"]
    held = "the host's memory" if memory is None else f"{in_bytes(memory)} for JAX"
    chosen = ", the default" if device["default"] else ""
    return f"{device['name']:<8} {device['kind']}, {held}, {device['default_dtype']} by default{chosen}"


def _host_lines(host: dict[str, Any], kernel: dict[str, Any]) -> list[str]:
    used = (
        f"native, {kernel['instructions']} instructions"
        if kernel["native"]
        else f"plain JAX, since the native kernel cannot be used: {kernel['absent_because']}"
    )
    return [
        f"processor  {host['name']}, {host['cores']} cores usable",
        f"memory     {in_bytes(host['memory_bytes'])}, {in_bytes(host['available_bytes'])} available",
        f"attention  {used}",
    ]


def _model_lines(models: dict[str, Any]) -> list[str]:
    lines = [f"kept in {models['cache']}"]
    for name, model in models["registered"].items():
        state = "fetched on first use" if model["bytes"] is None else f"here, {in_bytes(model['bytes'])}"
        lines.append(f"{name}: {state}")
    return lines


def _preset_line(name: str, sizes: dict[str, Any]) -> str:
    heads = f"{sizes['query_heads']}/{sizes['kv_heads']}/{sizes['head_dim']}"
    billions = f"{sizes['parameters'] / 1e9:.2f} B parameters"
    context = sizes["max_position_embeddings"]
    return f"{name:<15} {billions:>19}, {sizes['layers']} layers, heads N/K/H {heads}, context {context:,}"
