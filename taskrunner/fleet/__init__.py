"""Nodes: where they come from, and one task file on many of them at once."""
