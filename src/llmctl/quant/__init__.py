"""Weights in fewer bits: one file a backend."""
