"""The configuration: a typed schema, loading with file and line, and resolution of names before weights load."""

from mmrl.config.resolve import Resolved, ResolvedRL, ResolvedSupervised, load

__all__ = ["Resolved", "ResolvedRL", "ResolvedSupervised", "load"]
