"""Samples of a run that were kept with their scores (`kept`, as `sample_files` and `plain` values), and what other rewards would have
made of them (`compare`: `rescore`, `shift`, `replayed`, and `output` of it)."""
