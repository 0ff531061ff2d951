"""Batches of prompts: rows of the input, keys, answers, and a journal that can be resumed. `run` combines them."""
