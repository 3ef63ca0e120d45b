"""The feature models: what they are, their checkpoints, and their extractors."""
