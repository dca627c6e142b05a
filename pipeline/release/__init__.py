"""The steps from a result to a release: gate, promotion and model card."""
