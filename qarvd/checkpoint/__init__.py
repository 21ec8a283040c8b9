"""Checkpoint files: recognise, normalise, read, write, verify."""
