"""A trained run in use: loading, embedding, predicting."""
