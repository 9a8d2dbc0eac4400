"""Mean and spread of several runs; made and used through the command line in tests/shared/cli/test_ensemble.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyfm.shared.deployment import ensemble
from polyfm.shared.errors import UsageError
from polyfm.shared.training.run_folder import RunFolder


class Model:
    """Predicts a constant."""

    def __init__(self, value: float) -> None:
        self.value, self.data = value, SimpleNamespace(summary=lambda: [f"note of {value}"])

    def predict(self, items: Any) -> Any:
        values = np.full((len(items), 1), self.value)
        return SimpleNamespace(ids=[str(i) for i in items], names=["y"], values=values, answers={})


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i in (2, 0, 1):
        (tmp_path / f"member_{i}").mkdir()
        (tmp_path / f"member_{i}" / "recipe.yaml").touch()
    (tmp_path / "metrics.json").write_text("{}")
    monkeypatch.setattr(
        ensemble, "load", lambda folder: Model({"member_0": 1.0, "member_1": 2.0, "member_2": 6.0}[folder.name])
    )
    return tmp_path


def test_members_in_order(three: Path) -> None:
    assert [path.name for path in ensemble.members(three)] == ["member_0", "member_1", "member_2"]


def test_an_ensemble_that_stopped_does_not_predict_with_the_members_it_has(three: Path) -> None:
    (three / "metrics.json").unlink()
    RunFolder(three).write_plan(5, {})
    with pytest.raises(UsageError, match=r"before its 5 members .*polyfm fit --resume"):
        ensemble.predict(three, ["a"])


def test_mean_and_standard_deviation_by_hand(three: Path) -> None:
    found = ensemble.predict(three, ["a", "b"])
    assert found.ids == ["a", "b"]
    assert found.values.tolist() == [[3.0], [3.0]]
    assert found.spread is not None
    assert found.spread.tolist() == [[np.sqrt(7)], [np.sqrt(7)]]  # (4 + 1 + 9) / 2
