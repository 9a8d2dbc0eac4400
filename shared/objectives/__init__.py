"""From features to a loss: one file per family, each with its paper, its formula and its hand-computed test."""
