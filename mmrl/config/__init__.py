"""The configuration: a typed schema, loading with file and line, and resolution of names before weights load."""

from mmrl.config.resolve import Resolved, ResolvedExamples, ResolvedPreference, ResolvedRL, ResolvedSupervised, load

__all__ = ["Resolved", "ResolvedExamples", "ResolvedPreference", "ResolvedRL", "ResolvedSupervised", "load"]
