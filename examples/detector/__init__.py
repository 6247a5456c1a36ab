"""A small detector that is trained twice: its box loss computed in this process, and by a server."""
