"""The Hugging Face Hub: login, requests and their errors, downloads, and the cache."""
