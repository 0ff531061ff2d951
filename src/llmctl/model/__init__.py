"""The files of a model: configuration, weights, tokenizer and adapters, and the resolution of an id to a folder."""
