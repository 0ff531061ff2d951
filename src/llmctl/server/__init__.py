"""The HTTP server: OpenAI's interface to a loaded model."""
