"""The `apex-jax` command."""
