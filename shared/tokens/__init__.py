"""From a modality's batch to `Tokens`: embedders, positions, corruptions."""
