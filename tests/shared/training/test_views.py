"""Views: each distinct one is run once, in an order all processes agree on, and what it hides is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.data.batch import Batch
from polyfm.shared.objectives.objective import Progress, View, clean, teacher
from polyfm.shared.tokens.masking import Draw, MaskValues
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.views import answer, closure

HALF = MaskValues(0.5)


@pytest.fixture
def task(pretrain: Callable[..., PretrainTask]) -> PretrainTask:
    return pretrain()


def batch_of(toy: Any, size: int = 6, **lacking: Any) -> Batch:
    data = toy(lacking=lacking)
    data.setup()
    return data.collate(list(range(size)))


def ask(task: PretrainTask, batch: Batch, *views: View, epoch: int = 0) -> Any:
    return answer(views, batch, task.model, task.teacher, Draw(0, epoch), Progress())


class Calls:
    """Counts the calls of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.count += 1


def test_each_distinct_view_is_run_once(task: PretrainTask, toy: Any) -> None:
    """SPMM's four objectives ask for 11 views, of which 9 are distinct; encoders run 7 times, the fusion 5 times."""
    asked = sum(len(objective.needs()) for objective in task.objectives.values())
    encoders = {name: Calls(encoder) for name, encoder in task.model.encoders.items()}
    teachers = {name: Calls(encoder) for name, encoder in task.teacher.encoders.items()}
    trunks = Calls(task.model.fusion.backbone), Calls(task.teacher.fusion.backbone)
    views = ask(task, batch_of(toy), *task.needs)

    assert asked == 11
    assert len(task.needs) == 9
    assert set(views) >= task.needs
    # Plain and causal text; masked and masked causal table. The teacher's causal view is of the text only.
    assert {name: calls.count for name, calls in encoders.items()} == {"text": 2, "table": 2}
    assert {name: calls.count for name, calls in teachers.items()} == {"text": 2, "table": 1}
    # Fused: text to table, table to text, causal text to table, causal table to text; the teacher's causal text.
    assert (trunks[0].count, trunks[1].count) == (4, 1)


def test_order_does_not_depend_on_who_asks_first(task: PretrainTask) -> None:
    needs = list(task.needs)
    assert closure(needs) == closure(reversed(needs)) == closure(set(needs))


def test_a_view_comes_after_what_it_rests_on() -> None:
    fused = View("text", mask=CAUSAL, context=View("table", HALF))
    assert closure({fused}) == [fused.unfused, View("table", HALF), fused]
    assert closure({teacher(fused)})[-1].context == View("table", HALF, weights="teacher")


def test_causal_full_and_teacher_views_of_one_corruption_hide_the_same(task: PretrainTask, toy: Any) -> None:
    full, causal = View("table", HALF), View("table", HALF, CAUSAL)
    views = ask(task, batch_of(toy), full, causal, teacher(full))
    hidden = views[full].selected
    assert 0 < int(hidden.sum()) < len(hidden)
    assert torch.equal(hidden, views[causal].selected)
    assert torch.equal(hidden, views[teacher(full)].selected)
    other = View("table", MaskValues(0.4))
    assert not torch.equal(hidden, ask(task, batch_of(toy), other)[other].selected)


def test_what_is_hidden_depends_on_sample_and_pass_only(task: PretrainTask, toy: Any) -> None:
    view = View("table", HALF)
    whole = ask(task, batch_of(toy, 6), view)[view].selected.view(6, -1)
    part = ask(task, batch_of(toy, 3), view)[view].selected.view(3, -1)
    assert torch.equal(whole[:3], part)
    assert not torch.equal(whole, ask(task, batch_of(toy, 6), view, epoch=1)[view].selected.view(6, -1))


def test_teacher_views_have_no_gradient_and_its_own_weights(task: PretrainTask, toy: Any) -> None:
    with torch.no_grad():
        task.teacher.encoders["text"].projection.weight.mul_(-1)
    views = ask(task, batch_of(toy), clean("text"), teacher(clean("text")))
    assert views[clean("text")].projected.requires_grad
    assert not views[teacher(clean("text"))].projected.requires_grad
    assert not torch.allclose(views[clean("text")].projected, views[teacher(clean("text"))].projected)


def test_a_teacher_that_is_not_there_is_an_error(task: PretrainTask, toy: Any) -> None:
    with pytest.raises(ValueError, match="no teacher"):
        answer({teacher(clean("text"))}, batch_of(toy), task.model, None, Draw(0, 0), Progress())


def test_a_fused_view_has_the_rows_that_both_have(task: PretrainTask, toy: Any) -> None:
    """Items 0 and 3 lack the text, 1 and 3 the table: 2, 4 and 5 have both."""
    view = View("table", HALF, context=clean("text"))
    batch = batch_of(toy, text=(0, 3), table=(1, 3))
    views = ask(task, batch, view)
    assert views[view.unfused].rows.tolist() == [0, 2, 4, 5]
    assert views[view].rows.tolist() == [2, 4, 5]
    # The same numbers as for these three alone.
    data = toy()
    data.setup()
    alone = ask(task, data.collate([2, 4, 5]), view)[view]
    torch.testing.assert_close(views[view].pooled, alone.pooled)
    torch.testing.assert_close(views[view].tokens.items(), alone.tokens.items())
    assert torch.equal(views[view].selected, alone.selected)


@pytest.mark.parametrize("lacking", [{"text": range(6)}, {"table": range(6)}, {"text": range(6), "table": range(6)}])
def test_a_modality_that_no_item_has_is_answered_with_zero_rows(task: PretrainTask, toy: Any, lacking: Any) -> None:
    views = ask(task, batch_of(toy, **lacking), *task.needs)
    for view in task.needs:
        involved = {view.modality} | ({view.context.modality} if view.context else set())
        assert len(views[view].rows) == (0 if involved & set(lacking) else 6)


def test_progress_is_passed_on(task: PretrainTask, toy: Any) -> None:
    progress = Progress(step=3, epoch=0.25)
    views = answer({clean("text")}, batch_of(toy), task.model, None, Draw(7, 1), progress)
    assert views.progress is progress
    assert views.draw == Draw(7, 1)
    assert isinstance(views[clean("text")].pooled, Tensor)


def test_a_sum_of_modalities_is_the_first_s_items_with_the_tokens_of_all(task: PretrainTask, toy: Any) -> None:
    """Items 0 and 3 lack the text, 1 and 3 the table: text+table has 1, 2, 4, 5, of which 1 is text alone."""
    view, batch = clean("text+table"), batch_of(toy, text=(0, 3), table=(1, 3))
    views = ask(task, batch, view)
    text, table, whole = views[clean("text")], views[clean("table")], views[view]
    assert whole.rows.tolist() == text.rows.tolist() == [1, 2, 4, 5]
    assert torch.equal(whole.pooled, text.pooled)
    assert torch.equal(whole.projected, text.projected)
    by_item = {row: table.tokens.pack().select(torch.tensor([i])).x for i, row in enumerate(table.rows.tolist())}
    for i, row in enumerate(whole.rows.tolist()):
        index = torch.tensor([i])
        own = text.tokens.pack().select(index).x
        expected = own if row == 1 else torch.cat([own, by_item[row]])
        torch.testing.assert_close(whole.tokens.pack().select(index).x, expected)


def test_a_view_may_attend_to_a_sum(task: PretrainTask, toy: Any) -> None:
    """What stands behind the first part is seen, and trained."""
    alone, both = View("table", context=clean("text")), View("table", context=clean("text+table"))
    views = ask(task, batch_of(toy), alone, both)
    assert not torch.allclose(views[alone].pooled, views[both].pooled)
    assert closure({both})[-1] == both
    assert {clean("text"), clean("table"), clean("text+table")} < set(closure({both}))


def test_a_sum_may_attend(task: PretrainTask, toy: Any) -> None:
    view = View("text+table", context=clean("table"))
    views = ask(task, batch_of(toy), view)
    lengths = views[clean("text")].tokens.lengths + views[clean("table")].tokens.lengths
    assert torch.equal(views[view].tokens.lengths, lengths)
    views[view].pooled.sum().backward()
    assert task.model.encoders["text"].embedder.table.weight.grad is not None
