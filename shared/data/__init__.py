"""From files to batches: carriers, reading, splits, samplers and loaders that resume exactly."""
