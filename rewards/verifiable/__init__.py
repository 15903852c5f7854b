"""Rewards that compare a text answer with a known target, and the one parser that reads such answers."""
