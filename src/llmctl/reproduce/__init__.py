"""Reproducible runs: manifests, hashes of files, replay, and the plain transformers script."""
