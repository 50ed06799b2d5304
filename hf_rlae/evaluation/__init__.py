"""Evaluation: a search for fixed weights, metrics, and what texts cost."""
