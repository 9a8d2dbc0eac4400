"""Several classes: weights, calibrated probabilities, metrics against torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm

from polyfm.shared.errors import DataError
from polyfm.shared.training.targets.multi_class import MultiClass

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


class TestMultiClass:
    def test_weights_and_loss_by_hand(self) -> None:
        target = MultiClass.fit(["a"], column(0, 0, 0, 1))
        assert target.classes == ["0", "1"]
        # √(4 / (2·3)) and √(4 / (2·1))
        assert target.class_weight == [pytest.approx(math.sqrt(2 / 3)), pytest.approx(math.sqrt(2))]
        loss = target.loss(torch.zeros(3, 2), torch.tensor([[0.0], [1.0], [NAN]]))
        assert loss.item() == pytest.approx(math.log(2) * (math.sqrt(2 / 3) + math.sqrt(2)) / 2)

    def test_decoded_probabilities_are_calibrated(self) -> None:
        target = MultiClass.fit(["a"], column(0, 0, 0, 1, 2, 2))
        share = torch.tensor([3 / 6, 1 / 6, 2 / 6])
        best = (torch.tensor(target.class_weight) * share).log()[None]
        torch.testing.assert_close(target.decode(best), share[None])

    def test_metrics_against_torchmetrics(self) -> None:
        rng = np.random.default_rng(2)
        values, predictions = rng.integers(0, 3, (50, 1)).astype(float), rng.dirichlet(np.ones(3), 50)
        values[0] = NAN
        found = MultiClass.fit(["a"], values).metrics(predictions, values)
        y, p = torch.tensor(values[1:, 0]).long(), torch.tensor(predictions[1:])
        settings: dict[str, Any] = {"task": "multiclass", "num_classes": 3}
        assert found["accuracy"] == pytest.approx(float(tm.accuracy(p, y, average="micro", **settings)))
        assert found["macro_f1"] == pytest.approx(float(tm.f1_score(p, y, average="macro", **settings)), abs=1e-6)
        assert found["balanced_accuracy"] == pytest.approx(
            float(tm.recall(p, y, average="macro", **settings)), abs=1e-6
        )

    def test_what_is_said_is_the_most_probable_class(self) -> None:
        target = MultiClass(["kind"], ["salt", "acid"], [1.0, 1.0])
        assert target.answers(np.array([[0.4, 0.6], [0.7, 0.3]]))["kind_class"].tolist() == ["acid", "salt"]

    def test_without_labels_there_are_no_metrics(self) -> None:
        assert MultiClass.fit(["a"], column(0, 1)).metrics(np.eye(2), column(NAN, NAN)) == {}

    def test_named_classes_that_training_lacks_keep_their_place(self) -> None:
        target = MultiClass.fit(["a"], column(0, 2), ["low", "middle", "high"])
        assert (target.outputs, target.classes) == (3, ["low", "middle", "high"])

    def test_a_class_that_training_labels_lack_is_missing_in_the_loss_and_wrong_in_the_metrics(self) -> None:
        target = MultiClass.fit(["a"], column(0, 1, 0, 1))
        values = torch.tensor([[0.0], [5.0]])
        assert target.loss(torch.zeros(2, 2), values).item() == pytest.approx(math.log(2))
        assert target.metrics(np.eye(2), values.numpy())["accuracy"] == 0.5

    @pytest.mark.parametrize("wrong", [1.5, -1.0])
    def test_labels_that_are_no_classes_are_refused(self, wrong: float) -> None:
        with pytest.raises(DataError, match=f"label {wrong:g} in column 'a' is no class"):
            MultiClass.fit(["a"], column(0, wrong))

    def test_one_class_and_several_columns_are_refused(self) -> None:
        with pytest.raises(DataError, match="only one class among its 2 training labels. Split otherwise"):
            MultiClass.fit(["a"], column(1, 1))
        with pytest.raises(DataError, match="one column, not for 2"):
            MultiClass.fit(["a", "b"], np.zeros((2, 2)))
