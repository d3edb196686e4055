"""From a folder, a file or a name to configuration and weights."""
