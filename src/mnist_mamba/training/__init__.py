"""Training: optimizer groups, schedule, EMA, the loop, checkpoints.

Nothing is imported here: a pipeline stage depends on just the modules that it names.
"""
