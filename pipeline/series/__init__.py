"""Series of trainings beside the pipeline's own."""
