"""Whether a model fits a GPU that is not there, and what its programs do: compiled for it, and read."""
