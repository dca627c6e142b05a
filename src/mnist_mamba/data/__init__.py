"""Images and labels: the IDX format, where they come from, how they are split and augmented.

Nothing is imported here: a pipeline stage depends on just the modules that it names.
"""
