"""Everything that repeats a run: manifests, hashes of files, replay, and the plain transformers script."""
