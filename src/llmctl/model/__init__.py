"""A model as files: its configuration, weights, tokenizer and adapters, and how an id becomes a folder."""
