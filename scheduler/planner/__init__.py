"""The policy behind strategy "auto", and what it says of its decisions."""
