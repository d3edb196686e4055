"""What an engine takes from the kind of device that it runs on."""

from types import SimpleNamespace

import jax
import pytest

from apex_jax.device import default_dtype
from apex_jax.host_tier import host_device


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("gpu", "7.5", "float16"),  # T4
        ("gpu", "8.0", "bfloat16"),  # A100
        ("gpu", "8.9", "bfloat16"),  # RTX 40
        ("gpu", "10.0", "bfloat16"),  # B200: a number of two digits
        ("gpu", "gfx942", "bfloat16"),  # another maker's
        ("tpu", None, "bfloat16"),
        ("cpu", None, "float32"),
    ],
)
def test_the_number_type_that_a_device_is_quick_in(platform, capability, expected):
    fields = {} if capability is None else {"compute_capability": capability}
    assert default_dtype(SimpleNamespace(platform=platform, **fields)) == expected


def test_a_host_tier_without_the_cpu_backend(monkeypatch):
    """As with JAX_PLATFORMS=cuda."""

    def unknown(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", unknown)
    with pytest.raises(RuntimeError, match=r"CPU backend.*JAX_PLATFORMS=.*,cpu"):
        host_device(SimpleNamespace(platform="gpu"))
