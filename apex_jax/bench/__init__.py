"""The benchmarks behind `apex-jax bench`: host attention, and strategies beside an emulated device."""
