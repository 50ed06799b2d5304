"""Experiments: one module each, run by `python -m hf_rlae.studies.NAME`, with results that are kept."""
