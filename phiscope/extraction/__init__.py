"""Extraction: a corpus goes in, and a store of its hidden states comes out."""
