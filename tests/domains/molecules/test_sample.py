from __future__ import annotations

import numpy as np

from polyfm.domains.molecules.sample import MoleculeSample


def test_modalities_may_be_missing() -> None:
    sample = MoleculeSample(id="a", group="", row=1, targets={})
    assert (sample.smiles, sample.properties, sample.text) == (None, None, None)


def test_it_travels_as_a_carrier() -> None:
    values = np.arange(53.0)
    sample = MoleculeSample(id="a", group="c1ccccc1", row=3, smiles="C", properties=values, targets={"y": np.ones(1)})
    moved = sample.to("cpu")
    assert (moved.id, moved.group, moved.row, moved.smiles) == ("a", "c1ccccc1", 3, "C")
    assert moved.properties is values
    assert moved.replace(smiles="CC").smiles == "CC"
