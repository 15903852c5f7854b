"""Samples of a run that were kept with their scores, and what other rewards would have made of them."""
