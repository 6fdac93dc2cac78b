"""Does a declared symmetry hold? Group laws, the prior, the same noise moved and simulated anew, and equality in law."""

from .check import check_symmetry as check_symmetry
