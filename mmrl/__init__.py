"""Reinforcement-learning post-training for models that see and models that draw, on one policy-optimization core."""

from importlib.util import find_spec

from mmrl._version import __version__

if find_spec("mmrl.generative") is None:
    raise ImportError("mmrl is imported from a checkout that is not installed; run: pip install -e .")

__all__ = ["__version__"]
