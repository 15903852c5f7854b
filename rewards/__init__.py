"""Rewards: verifiable, preference, judge, remote, and their composition."""

COMPONENTS: dict[str, dict[str, str]] = {}
