"""Files of others, read within limits, and of ours, written whole. Below all else; needs the standard library only."""
