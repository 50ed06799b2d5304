"""Trainers. Their names are imported when they are first used: `import trl` takes seconds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
