"""Frozen image encoders and language models, and where their weights come from."""
