"""Heads: what is put before a model, or on top of it, and trained for a task."""
