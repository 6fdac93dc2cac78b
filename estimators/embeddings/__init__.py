"""Networks that summarise x before the density sees it, one architecture per file; the contract stands in ``base.py``."""

from .build import build_embedding as build_embedding
