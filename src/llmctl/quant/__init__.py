"""Weights in fewer bits, with one module per backend."""
