"""Trainers, imported on first use: `import trl` takes seconds."""

import importlib.util

import lazy_loader

if importlib.util.find_spec("trl") is None or importlib.util.find_spec("datasets") is None:
    raise ImportError("hf_rlae.trainers needs trl and datasets: pip install 'hf_rlae[train]'")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
