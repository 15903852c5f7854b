"""The embedded "shapes" world: captions, pictures and an exact verifier, all procedural."""
