"""Judges: vision-language models behind an OpenAI-compatible endpoint that say how good a sample is, and why."""
