"""This computer: detection, presets of others, threads, child processes, and a sandbox for untrusted work."""
