"""Rewards that check what is in a picture or video: text, objects, motion."""
