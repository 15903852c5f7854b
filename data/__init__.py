"""Datasets, prompt sources, samplers and procedural worlds."""

COMPONENTS: dict[str, dict[str, str]] = {}
