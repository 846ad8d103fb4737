"""Explainable image similarity: why does the network call these two photos similar?

Every public name stands in `__init__.pyi`, beside the module that defines it, and is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
