"""vLLM as an engine: the configuration translated into its arguments, its process, and batches on it."""
