"""Trainers, imported on first use: `import trl` takes seconds."""

import lazy_loader

from hf_rlae.extras import TRAINING, missing_packages

if (message := missing_packages("hf_rlae.trainers", TRAINING, "train")) is not None:
    raise ImportError(message)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
