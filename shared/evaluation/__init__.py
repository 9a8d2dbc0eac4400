"""What a trained model is worth: retrieval, intervals, baselines beside it, the report."""
