"""Losses on finished samples, which are noised again, and losses that read more of a denoising step than its log-prob."""
