"""Evaluation: how well a model does, in figures."""
