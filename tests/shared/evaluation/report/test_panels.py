"""Panels render, say what they show, and bear what data throw at them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyfm.shared.evaluation.report.maps import map_panel
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import (
    baseline_panel,
    confusion_panel,
    curves_panel,
    data_panel,
    labels_panel,
    measured_panel,
    recipe_panel,
    reliability_panel,
    retrieval_table,
    spread_panel,
    target_panels,
)
from polyfm.shared.evaluation.retrieval import Retrieval
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def has_picture(panel: Panel) -> bool:
    return panel.body.startswith("<svg") and "</svg>" in panel.body


class TestCurves:
    def test_losses_and_scores_by_step(self, tmp_path: Path) -> None:
        file = tmp_path / "metrics.csv"
        rows = [f"{i},{2 / (i + 1)},,," for i in range(60)] + ["59,,0.5,-0.7,0.9"]
        file.write_text("step,train/loss,valid/loss,valid/score,valid/rmse\n" + "\n".join(rows))
        panel = curves_panel(file)
        assert has_picture(panel)
        assert "training" in panel.body
        assert ">score<" in panel.body.replace("\n", "")
        assert "rmse" not in panel.body  # the score says it, in one direction

    def test_without_curves(self, tmp_path: Path) -> None:
        assert curves_panel(tmp_path / "none.csv").body == "<p>No curves were written.</p>"

    def test_without_validation(self, tmp_path: Path) -> None:
        file = tmp_path / "metrics.csv"
        file.write_text("step,train/loss\n1,0.5\n")
        assert has_picture(curves_panel(file))


class TestBaselines:
    METRICS: dict[str, Any] = {
        "test/rmse": 0.5, "test/r2": 0.7, "test/rmse_low": 0.4, "test/rmse_high": 0.6, "test/rows": 12,
        "baseline/forest/rmse": 0.3, "baseline/forest/r2": 0.9, "baseline/linear/rmse": 0.8, "train/speed": 9.0,
    }  # fmt: skip

    def test_the_best_row_is_marked_whoever_it_is(self) -> None:
        panel = baseline_panel(self.METRICS, Regression(["a"], mean=[0.0], scale=[1.0]))
        order = [panel.body.index(name) for name in ("forest", "this model", "linear")]
        assert order == sorted(order)
        assert '<tr class="best"><td>forest</td><td class="number">0.3</td>' in panel.body
        assert '<tr class="ours"><td>this model</td>' in panel.body
        assert "speed" not in panel.body
        assert "12 test rows" in panel.note
        assert "95 % bootstrap interval 0.4 to 0.6" in panel.note

    def test_where_higher_is_better_and_where_a_metric_is_undefined(self) -> None:
        target = Binary(["a"], positive_weight=[1.0], threshold=[0.5])
        panel = baseline_panel({"test/auroc": 0.9, "baseline/forest/auroc": 0.8, "baseline/odd/f1": 1.0}, target)
        assert '<tr class="best ours"><td>this model</td>' in panel.body
        order = [panel.body.index(name) for name in ("this model", "forest", "odd")]
        assert order == sorted(order)
        assert "bootstrap" not in panel.note
        assert has_row_of_dashes(panel.body)


def test_without_baselines_none_are_announced() -> None:
    assert baseline_panel({"test/rmse": 0.5}, Regression(["a"], mean=[0.0], scale=[1.0])).title == "Test metrics"


def test_members_stand_beside_their_mean_and_the_spread_beside_the_error() -> None:
    rng = np.random.default_rng(0)
    panel = spread_panel("rmse", {"member_0": 0.7, "their mean": 0.5}, rng.random(9), rng.random(9), 0.25)
    assert '<td>member_0</td><td class="number">0.7</td>' in panel.body
    assert "</svg>" in panel.body
    assert "Spearman correlation of the two: 0.25" in panel.note
    assert "Spearman" not in spread_panel("rmse", {}, np.zeros(1), np.zeros(1), None).note


def has_row_of_dashes(body: str) -> bool:
    return '<td>odd</td><td class="number">–</td>' in body


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "predictions", "values", "title"),
        [
            (
                Regression(["a"], mean=[0.0], scale=[1.0]),
                column(1, 2, 3),
                column(1, NAN, 3),
                "Predicted against measured",
            ),
            (
                Binary(["a"], positive_weight=[1.0], threshold=[0.5]),
                column(0.1, 0.9, 0.4),
                column(0, 1, NAN),
                "Reliability",
            ),
            (MultiClass(["a"], classes=["x", "y"], class_weight=[1.0, 1.0]), np.eye(2), column(0, 1), "Confusion"),
        ],
    )
    def test_each_kind_has_its_picture(
        self, target: Target, predictions: np.ndarray, values: np.ndarray, title: str
    ) -> None:
        (panel,) = target_panels(target, predictions, values)
        assert panel.title == title
        assert has_picture(panel)
        assert target_panels(target, predictions, values * NAN) == []

    def test_of_several_labels_all_are_in_the_table_and_the_first_are_drawn(self) -> None:
        names = [f"label {i}" for i in range(6)]
        target = Regression(names, mean=[0.0] * 6, scale=[1.0] * 6)
        values = np.arange(18.0).reshape(3, 6)
        values[:, 1], values[0, 2] = NAN, NAN
        panels = target_panels(target, values + 1, values)
        assert [panel.title.rpartition(": ")[2] for panel in panels] == ["label 0", "label 2", "label 3", "label 4"]
        metrics = {"test/label 0/rmse": 1.0, "baseline/b/label 0/rmse": 3.0, "baseline/c/label 0/rmse": 2.0}
        body = labels_panel(metrics, target, values).body
        assert (
            '<td>label 0</td><td class="number">3</td><td class="number">1</td><td class="number">2</td><td>c</td>'
            in body
        )
        assert '<td>label 1</td><td class="number">0</td>' in body
        assert '<td>label 2</td><td class="number">2</td>' in body

    def test_names_from_data_are_safe(self) -> None:
        name = r"<script>x</script> ($\frac"
        assert "<script>" not in measured_panel(name, np.arange(3.0), np.arange(3.0)).body
        assert "<script>" not in reliability_panel(name, np.array([0.1, 0.9]), np.array([0.0, 1.0])).body
        assert "<script>" not in confusion_panel([name, "b"], np.eye(2), np.array([0.0, 1.0])).body

    def test_one_value_and_equal_probabilities(self) -> None:
        assert has_picture(measured_panel("a", np.array([1.0]), np.array([2.0])))
        assert has_picture(reliability_panel("a", np.full(5, 0.5), np.ones(5)))

    def test_a_class_that_training_lacked_is_left_out_of_the_confusion(self) -> None:
        assert has_picture(confusion_panel(["a", "b"], np.eye(3)[:, :2], np.array([0.0, 1.0, 2.0])))

    def test_many_points_are_a_picture_within_the_picture(self) -> None:
        rng = np.random.default_rng(0)
        panel = measured_panel("a", rng.standard_normal(20_000), rng.standard_normal(20_000))
        assert len(panel.body) < 1_000_000


def test_retrieval_table_has_intervals_and_the_chance_line() -> None:
    result = Retrieval(ranks=np.array([1.0, 1, 3, 20]), top=np.zeros((4, 0), dtype=int), pool=50)
    html = retrieval_table({"a → b": result})
    assert "50.0% (" in html
    assert "<td>chance</td>" in html
    assert "<td>2.0%</td><td>10.0%</td><td>20.0%</td>" in html


@pytest.mark.parametrize("n", [5, 60])
def test_map_by_names_and_numbers(n: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((n, 6))
    names = np.array([f"scaffold {i % 12}" for i in range(n)])
    panel = map_panel(vectors, {"by name": names, "by number": np.arange(n)}, title="Map")
    assert has_picture(panel)
    assert panel.wide
    assert ("others" in panel.body) == (n == 60)  # twelve names, ten colours


def test_of_a_large_map_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyfm.shared.evaluation.report.maps.MAPPED", 20)
    panel = map_panel(np.random.default_rng(0).standard_normal((60, 6)), {"by number": np.arange(60)}, title="Map")
    assert has_picture(panel)
    assert panel.note.startswith("20 items.")


def test_data_and_recipe_are_escaped(tmp_path: Path) -> None:
    data = SimpleNamespace(summary=lambda: ["x.csv: <b>3</b> rows left out"])
    assert "<b>" not in data_panel(data).body
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("title: <script>\n")
    panel = recipe_panel(SimpleNamespace(recipe=recipe, path=tmp_path))
    assert "<script>" not in panel.body
    assert f"polyfm fit --resume {tmp_path}" in panel.body


def test_a_report_does_not_say_where_the_data_stood(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {init_args: {path: /home/someone/x.csv}}\n")
    body = recipe_panel(SimpleNamespace(recipe=recipe, path="runs/a")).body
    assert "x.csv" in body
    assert "someone" not in body
