"""This computer: detection, presets for other computers, threads, child processes, and a sandbox for untrusted work."""
