"""vLLM in a process of its own: the configuration translated into its arguments (translate), started and watched
(child), and used for batches (batch)."""
