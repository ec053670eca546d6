"""The drawn world: scenes, captions, questions, and foundation models pre-trained on it."""
