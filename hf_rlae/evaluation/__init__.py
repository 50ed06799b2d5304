"""Evaluation: a search for fixed weights, and metrics."""
