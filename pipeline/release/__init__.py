"""What stands between a result and a release: the gate, promotion, the model card, the report."""
