"""Replay memory and the policies that fill it."""

from lightning_cl.memory.memory import Memory, find_labels

__all__ = ["Memory", "find_labels"]
