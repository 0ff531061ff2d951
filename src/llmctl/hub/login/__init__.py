"""Login to the Hub: the token in use, the token store, and login with a token or through a browser."""
