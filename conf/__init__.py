"""Hydra groups; in a wheel other apps reach them as ``pkg://lightning_cl.conf``."""
