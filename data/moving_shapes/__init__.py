"""Shapes that move: captions, drawn videos and an exact verifier, all procedural."""
