"""Puzzles with known answers, made from pictures and videos: generator, verifier and difficulty in one small file each."""
