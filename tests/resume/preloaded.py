"""What the process that `process` forks from has imported and compiled: a fork takes a moment, an import seconds."""

from __future__ import annotations

import numpy as np

import polyfm.domains.molecules.data
import polyfm.domains.singlecell.data
import polyfm.shared.cli.main
import polyfm.shared.evaluation.finish
import polyfm.shared.training.build  # noqa: F401 - imported for whoever is forked
from polyfm.domains.singlecell.binning import bin_counts

bin_counts(np.array([0, 1]), np.zeros(1), np.ones(1, np.float32), np.zeros(1, np.uint32))
