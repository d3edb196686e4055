"""Counts what XLA compiles."""

import contextlib

import jax.monitoring


@contextlib.contextmanager
def counted_compilations():
    """Yield a list that grows by one with each program that is compiled, or found in JAX's persistent cache."""
    found = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
