"""Tests that need a Slurm of their own; they are marked ``slurm``."""
