"""The page that a run ends with: one file that opens anywhere, with nothing loaded from elsewhere."""
