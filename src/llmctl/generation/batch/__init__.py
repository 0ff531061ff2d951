"""Many prompts from a file, answered so that nothing is lost: rows, keys, journal, answers (run joins them)."""
