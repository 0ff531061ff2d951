"""This computer: detection, presets of others, and a child process with limits for untrusted work."""
