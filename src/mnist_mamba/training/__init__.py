"""Training: optimizers, schedule, moving average, the loop, checkpoints.

Nothing is imported here, so that a pipeline stage depends only on the modules it names.
"""
