"""The standard cache of huggingface_hub: what it holds, how it is checked and how it is cleaned."""
