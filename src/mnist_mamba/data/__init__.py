"""Images and labels: IDX files, sources, splits and augmentation.

Nothing is imported here, so that a pipeline stage depends only on the modules it names.
"""
