"""Files that others wrote: read within limits. Below everything else; needs the standard library only."""
