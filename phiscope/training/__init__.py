"""Training: text to a model's folder."""
