"""Edits of pictures of the shapes world: source pictures, instructions and an exact verifier, all procedural."""
