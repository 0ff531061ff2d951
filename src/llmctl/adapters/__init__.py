"""Adapters: small weights on top of a model's (LoRA), read safely, checked against the model, put in by peft."""
