"""Other formats: transformers models, checkpoints of other projects."""
