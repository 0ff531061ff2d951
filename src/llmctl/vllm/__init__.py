"""vLLM as an engine: translation of the configuration into its arguments, its process, and batches."""
