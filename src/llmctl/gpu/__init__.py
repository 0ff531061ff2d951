"""The engine's parts for GPUs: paged attention by capability, CUDA graphs, and sampling on the device."""
