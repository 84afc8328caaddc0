"""Simulated slides and loaders of public data."""

from ghistpy.datasets.simulate import simulate_slide

__all__ = ["simulate_slide"]
