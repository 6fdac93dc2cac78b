"""Joint symmetries of theta and x: groups, how they act, and blurring kernels; the contracts stand in ``base.py``."""

from .build import build_symmetry as build_symmetry
