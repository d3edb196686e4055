"""The engine: requests come in, plans go out, tokens come back as text."""
