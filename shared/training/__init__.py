"""Tasks, optimiser, stages, recipes, checkpoints: what turns parts into a run."""
