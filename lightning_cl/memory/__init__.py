"""Replay memory and the policies that fill it."""

from lightning_cl.memory._labels import find_labels
from lightning_cl.memory.memory import Memory

__all__ = ["Memory", "find_labels"]
