"""Series of trainings that are compared with each other, apart from the pipeline's own run."""
