"""Members of an ensemble apart from one another, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.shared.evaluation.spread import judge_spread, spread_and_error
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression

NAN = float("nan")
NUMBER = Regression(["a"], mean=[0.0], scale=[1.0])


def test_of_numbers_where_the_label_is_given() -> None:
    stack = np.array([[[1.0], [5.0], [2.0]], [[3.0], [5.0], [2.0]]])
    spread, error = spread_and_error(NUMBER, stack, np.array([[4.0], [5.0], [NAN]]))
    assert spread.tolist() == pytest.approx([np.sqrt(2), 0.0])
    assert error.tolist() == [2.0, 0.0]


def test_of_several_classes_it_is_the_true_one_s_probability() -> None:
    target = MultiClass(["a"], classes=["x", "y"], class_weight=[1.0, 1.0])
    stack = np.array([[[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]], [[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]])
    values = np.array([[1.0], [NAN], [2.0]])  # a class that training lacked cannot be told
    spread, error = spread_and_error(target, stack, values)
    assert spread.tolist() == pytest.approx([np.sqrt(0.02)])
    assert error.tolist() == pytest.approx([0.8])


def test_each_member_is_scored_and_the_spread_ranked_against_the_error() -> None:
    values = np.array([[0.0], [0.0], [0.0]])
    stack = np.array([[[0.0], [1.0], [2.0]], [[0.0], [2.0], [4.0]]])
    metrics, panel = judge_spread(NUMBER, stack, values, {"test/rmse": 1.5})
    assert metrics["member_0/rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert metrics["member_1/rmse"] == pytest.approx(np.sqrt(20 / 3))
    assert metrics["mean_sd"] == pytest.approx((np.sqrt(0.5) + np.sqrt(2)) / 3)
    assert metrics["sd_error_spearman"] == pytest.approx(1.0)
    assert panel.body.index("<td>member_1</td>") < panel.body.index("<td>their mean</td>")


def test_without_labels_or_with_equal_members_there_is_no_rank() -> None:
    stack = np.zeros((2, 3, 1))
    for values in (np.full((3, 1), NAN), np.arange(3.0)[:, None]):
        metrics, panel = judge_spread(NUMBER, stack, values, {})
        assert "sd_error_spearman" not in metrics
        assert "<td>their mean</td>" not in panel.body
