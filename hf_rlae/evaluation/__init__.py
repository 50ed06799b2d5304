"""What is measured: searches, metrics and tables."""
