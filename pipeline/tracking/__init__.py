"""Everything that knows MLflow: only this folder imports mlflow."""
