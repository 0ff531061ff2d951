"""Logging in to the Hub: the token in use, the store of tokens, login by pasting one or through a browser."""
