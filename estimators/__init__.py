"""Conditional densities, their training, and the posteriors made from them."""
