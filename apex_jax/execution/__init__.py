"""Runs plans: the executor, the devices it drives, and the compiled programs."""
