"""Access control of the server: API keys, allowed hosts and the guard around the app."""
