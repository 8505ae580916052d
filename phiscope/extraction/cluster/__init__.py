"""Extraction past one machine: on Ray, and as a function for engines that map Arrow batches."""
