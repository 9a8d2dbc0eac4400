"""Checkpoints: what is read, what is refused, what does not fit; the exchange format."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - makes the attack
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from polyfm.shared.errors import DataError, StorageError
from polyfm.shared.objectives.masked import MaskedTokens
from polyfm.shared.training import checkpoint as module
from polyfm.shared.training.checkpoint import (
    RecipeInCheckpoint,
    SafeCheckpointIO,
    load_weights,
    read_checkpoint,
    read_exchange,
    second_name,
    write_checkpoint,
    write_exchange,
)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path, legacy: bool) -> None:
    path, proof = tmp_path / "bad.ckpt", tmp_path / "proof"
    if legacy:
        path.write_bytes(pickle.dumps({"state_dict": Attack(proof)}))
    else:
        torch.save({"state_dict": Attack(proof)}, path)
    with pytest.raises(DataError, match="cannot be read safely|can be read safely") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert not proof.exists()
    with pytest.raises(DataError):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)  # whatever it is told
    assert not proof.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="from local files only"):
        read_checkpoint("https://example.org/model.ckpt")
    with pytest.raises(DataError, match="there is no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    with pytest.raises(DataError, match="not a checkpoint that can be read safely"):
        read_checkpoint(text)
    tensor = tmp_path / "tensor.ckpt"
    torch.save(torch.zeros(2), tensor)
    with pytest.raises(DataError, match="does not hold a mapping"):
        read_checkpoint(tensor)


def test_a_checkpoint_above_the_cap_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.ckpt"
    torch.save({"state_dict": {}}, path)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        read_checkpoint(path)


def test_a_run_s_checkpoint_holds_primitives_and_its_recipe(
    pretrain: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("title: mine")
    fitted = trainer([RecipeInCheckpoint(tmp_path / "recipe.yaml")], max_steps=1)
    fitted.fit(pretrain(lambda: {"token": MaskedTokens("text")}), datamodule=toy())
    fitted.save_checkpoint(tmp_path / "run.ckpt")
    content = read_checkpoint(tmp_path / "run.ckpt")
    assert content["recipe"] == "title: mine"
    assert set(content["ToyData"]) == {"transforms"}
    assert not [key for key in content if "hyper_parameters" in key]  # parts are never pickled


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_weights_that_match_are_loaded_and_the_rest_is_told() -> None:
    target = model()
    state = {
        "0.weight": torch.ones(4, 3),
        "0.bias": torch.ones(4),
        "1.weight": torch.ones(2, 4),
        "extra": torch.ones(1),
    }
    line = load_weights(target, state, what="encoder")
    assert line == "encoder: 3 tensors loaded (92% of the numbers), 1 missing, 1 unexpected, 0 of another shape"
    assert target[0].weight.eq(1).all()
    assert not target[1].bias.eq(1).any()


def test_too_little_that_matches_is_refused() -> None:
    state = {"0.weight": torch.ones(4, 3), "1.weight": torch.ones(5, 4)}
    with pytest.raises(DataError, match="1 tensors loaded .* 2 missing, 0 unexpected, 1 of another shape") as error:
        load_weights(model(), state, what="encoder")
    assert "for example 0.bias" in str(error.value)
    assert load_weights(model(), state, what="encoder", at_least=0.4).startswith("encoder: 1 tensors")


def test_the_exchange_format_keeps_what_use_needs(tmp_path: Path, pretrain: Callable[..., Any]) -> None:
    task = pretrain()
    content = {
        "state_dict": task.state_dict(),
        "optimizer_states": [{"state": {0: torch.zeros(3)}}],
        "recipe": "title: mine",
        "ToyData": {"transforms": {"mean": [0.5, float("nan")]}},
        "epoch": 3,
    }
    path = tmp_path / "best.safetensors"
    write_exchange(content, path, dtype=torch.float16)
    again = read_checkpoint(path)
    assert (again["recipe"], again["epoch"], again["partial"]) == ("title: mine", 3, True)
    assert again["ToyData"]["transforms"]["mean"][0] == 0.5
    assert "optimizer_states" not in again
    names = set(again["state_dict"])
    assert not [name for name in names if name.startswith("teacher.") or "queue" in name or "teacher_" in name]
    assert names >= {name for name in task.state_dict() if name.startswith("model.")}
    for name in names:
        torch.testing.assert_close(again["state_dict"][name], task.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert path.stat().st_size < 0.5 * sum(v.numel() * v.element_size() for v in task.state_dict().values())


def test_a_damaged_exchange_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(DataError, match="not a checkpoint in the exchange format"):
        read_exchange(path)


def test_the_exchange_format_does_not_say_where_the_data_stood(tmp_path: Path, pretrain: Callable[..., Any]) -> None:
    recipe = "data:\n  class_path: ToyData\n  init_args:\n    path: /home/someone/project/x.csv\n"
    path = tmp_path / "best.safetensors"
    write_exchange({"state_dict": pretrain().state_dict(), "recipe": recipe}, path)
    assert b"someone" not in path.read_bytes()
    assert 'path: "x.csv"' in read_checkpoint(path)["recipe"]


class TestWriting:
    CONTENT = {"state_dict": {"a": torch.arange(1000.0)}}

    def test_what_is_written_is_read_and_nothing_else_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "last.ckpt"
        SafeCheckpointIO().save_checkpoint(self.CONTENT, path)
        assert torch.equal(read_checkpoint(path)["state_dict"]["a"], torch.arange(1000.0))
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]

    def test_a_full_disk_is_one_message_and_the_file_before_stays_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "last.ckpt"
        write_checkpoint(self.CONTENT, path)
        (tmp_path / "last.ckpt.part").symlink_to("/dev/full")  # what is written there meets a full disk
        with pytest.raises(StorageError, match="last.ckpt: this checkpoint could not be written") as error:
            write_checkpoint({"state_dict": {"a": torch.zeros(100_000)}}, path)
        assert "(No space left on device). The one before it is whole: free some space" in str(error.value)
        assert "polyfm fit --resume" in str(error.value)
        assert error.value.exit_code == 1
        assert torch.equal(read_checkpoint(path)["state_dict"]["a"], torch.arange(1000.0))
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]

    def test_a_name_that_breaks_off_while_it_is_written_does_not_appear(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "last.ckpt"

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(module.os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(self.CONTENT, path)
        assert not path.exists()

    def test_what_cannot_be_saved_is_a_bug_and_stays_one(self, tmp_path: Path) -> None:
        with pytest.raises(AttributeError, match="pickle"):
            write_checkpoint({"a": lambda: None}, tmp_path / "last.ckpt")

    @pytest.mark.parametrize("links", [True, False])
    def test_a_second_name_outlives_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
    ) -> None:
        if not links:
            monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        fresh, best = tmp_path / "fresh.ckpt", tmp_path / "best.ckpt"
        for text in ("first", "second"):
            fresh.write_text(text)
            second_name(fresh, best)
            fresh.unlink()
            assert best.read_text() == text
        assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
