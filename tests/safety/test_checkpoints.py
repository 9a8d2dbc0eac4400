"""Checkpoints of a stranger: each ends in one clear error, wherever it is read, and nothing has happened by then."""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - makes attacks
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tests.safety.conftest import Watch
from torch import nn

from polyfm.domains.molecules.synthetic import write_synthetic
from polyfm.shared.cli.main import main
from polyfm.shared.errors import DataError
from polyfm.shared.training.checkpoint import MAX_BYTES, SafeCheckpointIO, read_checkpoint

RUN = Path(__file__).resolve().parents[2] / "domains" / "molecules" / "demo_run"
"""A run of polyfm: what a good checkpoint looks like."""


class Attack:
    """Makes the canary when it is unpickled."""

    def __init__(self, watch: Watch) -> None:
        self.command = f"touch {watch.canary}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Opener(Attack):
    """Connects when it is unpickled."""

    def __init__(self, watch: Watch) -> None:
        self.address = watch.server.getsockname()

    def __reduce__(self) -> Any:
        import socket

        return socket.create_connection, (self.address,)


class Writer(Attack):
    """Opens a file outside when it is unpickled."""

    def __init__(self, watch: Watch) -> None:
        self.path = str(watch.canary)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def good() -> dict[str, Any]:
    content = read_checkpoint(RUN / "checkpoints" / "best.safetensors")
    content.pop("partial")
    return content


def packed(content: Any, path: Path, **how: Any) -> None:
    torch.save(content, path, **how)


def repacked(path: Path, change: Callable[[str, bytes], bytes] = lambda _, data: data, method: int = 0) -> None:
    """An archive written again, its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, change(entry.filename, archive.read(entry))) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


def reduce(path: Path, watch: Watch) -> None:
    packed({"state_dict": {"w": Attack(watch)}}, path)


def reduce_legacy(path: Path, watch: Watch) -> None:
    packed({"state_dict": {"w": Attack(watch)}}, path, _use_new_zipfile_serialization=False)


def reduce_plain(path: Path, watch: Watch) -> None:
    path.write_bytes(pickle.dumps(Attack(watch)))


def reduce_connects(path: Path, watch: Watch) -> None:
    packed({**good(), "callbacks": Opener(watch)}, path)


def reduce_writes(path: Path, watch: Watch) -> None:
    packed({**good(), "MoleculeDataModule": Writer(watch)}, path)


def reduce_beside_good_weights(path: Path, watch: Watch) -> None:
    packed({**good(), "epoch": Attack(watch)}, path)


def instantiator(path: Path, watch: Watch) -> None:
    packed({**good(), "hyper_parameters": {"_instantiator": "os.system", "command": f"touch {watch.canary}"}}, path)


def instantiator_of_the_data(path: Path, watch: Watch) -> None:
    packed(
        {**good(), "datamodule_hyper_parameters": {"_instantiator": "lightning.pytorch.cli.instantiate_module"}}, path
    )


def whole_module(path: Path, watch: Watch) -> None:
    packed(nn.Linear(2, 2), path)


def nested_zip(path: Path, watch: Watch) -> None:
    packed({"state_dict": {"w": Attack(watch)}}, path)
    inner = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", inner)
        archive.writestr("archive/version", "3\n")


def zip_of_a_zip(path: Path, watch: Watch) -> None:
    packed({"state_dict": {"w": Attack(watch)}}, path)
    inner = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.ckpt", inner)


def zip_with_a_way_out(path: Path, watch: Watch) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../canary", "x")


def decompression_bomb(path: Path, watch: Watch) -> None:
    packed({"state_dict": {"w": torch.zeros(2**22)}}, path)
    repacked(path, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18


def declared_storage(path: Path, watch: Watch) -> None:
    """The pickle speaks of 2^42 numbers, the archive holds three."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        at = data.index(b"K\x03", data.index(b"cpu"))
        return data[:at] + b"\x8a\x06" + (2**42).to_bytes(6, "little") + data[at + 2 :]

    packed({"state_dict": {"w": torch.zeros(3)}}, path)
    repacked(path, change)


def stretched(path: Path, watch: Watch) -> None:
    """2^40 numbers that are all the same one."""
    packed({"state_dict": {"w": torch.zeros(1).expand(2**40)}}, path)


def legacy_tar(path: Path, watch: Watch) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Attack(watch), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


class Script(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def torchscript(path: Path, watch: Watch) -> None:
    torch.jit.script(Script()).save(str(path))


def wrong_shapes(path: Path, watch: Watch) -> None:
    content = good()
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(3, 3)
    packed(content, path)


def strangers_weights(path: Path, watch: Watch) -> None:
    packed({**good(), "state_dict": nn.Linear(2, 2).state_dict()}, path)


def weights_that_are_none(path: Path, watch: Watch) -> None:
    packed({**good(), "state_dict": {"model.encoders": "touch"}}, path)


def no_weights(path: Path, watch: Watch) -> None:
    packed({"epoch": 1}, path)


def sparse_weights(path: Path, watch: Watch) -> None:
    packed({**good(), "state_dict": {"w": torch.eye(3).to_sparse()}}, path)


def wrong_transforms(path: Path, watch: Watch) -> None:
    packed({**good(), "MoleculeDataModule": {"transforms": {"tokenizer": 3}}}, path)


def a_list(path: Path, watch: Watch) -> None:
    packed([torch.zeros(2)], path)


def numbers_for_names(path: Path, watch: Watch) -> None:
    packed({1: torch.zeros(2)}, path)


def truncated(path: Path, watch: Watch) -> None:
    packed(good(), path)
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, watch: Watch) -> None:
    path.touch()


def link_out(path: Path, watch: Watch) -> None:
    elsewhere = watch.folder / "elsewhere.ckpt"
    packed(good(), elsewhere)
    path.symlink_to(elsewhere)


def link_to_a_device(path: Path, watch: Watch) -> None:
    path.symlink_to("/dev/zero")


def above_the_cap(path: Path, watch: Watch) -> None:
    """Sparse: takes no room."""
    path.touch()
    os.truncate(path, MAX_BYTES + 1)


def safetensors(header: bytes, length: int | None = None, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


def header_without_end(path: Path, watch: Watch) -> None:
    path.write_bytes(safetensors(b"{}", length=2**62))


def header_of_overlaps(path: Path, watch: Watch) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    path.write_bytes(safetensors(json.dumps({"a": entry, "b": entry}).encode(), rest=b"\0" * 8))


def header_of_much(path: Path, watch: Watch) -> None:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    path.write_bytes(safetensors(json.dumps({"a": entry}).encode(), rest=b"\0" * 8))


def header_that_is_none(path: Path, watch: Watch) -> None:
    path.write_bytes(safetensors(b"\x80\x04touch"))


def header_nested(path: Path, watch: Watch) -> None:
    """JSON within the header, 50,000 lists deep."""
    path.write_bytes(safetensors(json.dumps({"__metadata__": {"content": "[" * 50_000}}).encode()))


def header_of_a_list(path: Path, watch: Watch) -> None:
    path.write_bytes(safetensors(json.dumps({"__metadata__": {"content": "[1]"}}).encode()))


def header_with_an_instantiator(path: Path, watch: Watch) -> None:
    content = json.dumps({"hyper_parameters": {"_instantiator": "os.system"}})
    path.write_bytes(safetensors(json.dumps({"__metadata__": {"content": content}}).encode()))


def pickle_in_disguise(path: Path, watch: Watch) -> None:
    path.write_bytes(pickle.dumps(Attack(watch)))


# The maker of each, and what its error says.
CKPT: dict[Callable[[Path, Watch], None], str] = {
    reduce: "can be read safely",
    reduce_legacy: "can be read safely",
    reduce_plain: "can be read safely",
    reduce_connects: "can be read safely",
    reduce_writes: "can be read safely",
    reduce_beside_good_weights: "can be read safely",
    instantiator: "names a function that is to build it (hyper_parameters)",
    instantiator_of_the_data: "names a function that is to build it (datamodule_hyper_parameters)",
    whole_module: "can be read safely",
    nested_zip: "can be read safely",
    zip_of_a_zip: "can be read safely",
    zip_with_a_way_out: "can be read safely",
    decompression_bomb: "is compressed",
    declared_storage: "can be read safely",
    stretched: "has more numbers than the file",
    legacy_tar: "can be read safely",
    torchscript: "a program (TorchScript), not weights",
    wrong_shapes: "does not fit its recipe",
    strangers_weights: "does not fit its recipe",
    weights_that_are_none: "which is no tensor",
    no_weights: "does not fit its recipe",
    sparse_weights: "is no plain tensor",
    wrong_transforms: "does not fit its recipe",
    a_list: "does not hold a mapping",
    numbers_for_names: "does not hold a mapping",
    truncated: "can be read safely",
    empty: "can be read safely",
    link_out: "a link that leads out of its folder",
    link_to_a_device: "checkpoint",
    above_the_cap: "larger than",
}
SAFETENSORS: dict[Callable[[Path, Watch], None], str] = {
    header_without_end: "not a checkpoint in the exchange format",
    header_of_overlaps: "not a checkpoint in the exchange format",
    header_of_much: "not a checkpoint in the exchange format",
    header_that_is_none: "not a checkpoint in the exchange format",
    header_nested: "not a checkpoint in the exchange format",
    header_of_a_list: "not a checkpoint in the exchange format",
    header_with_an_instantiator: "names a function that is to build it",
    pickle_in_disguise: "not a checkpoint in the exchange format",
}
ALL = [(make, name, said) for table, name in ((CKPT, "best.ckpt"), (SAFETENSORS, "best.safetensors")) for make, said in table.items()]  # fmt: skip
FIT_ONLY = (wrong_shapes, strangers_weights, no_weights, wrong_transforms)
"""Readable: what is wrong shows when it goes into a model."""
IDS = [make.__name__ for make, _, _ in ALL]


def test_size_of_the_corpus() -> None:
    print(f"{len(ALL)} hostile checkpoints")
    assert len(ALL) == 38


@pytest.fixture(scope="module")
def _used_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports and looks of libraries happen before any watch."""
    folder = tmp_path_factory.mktemp("used")
    data = write_synthetic(folder, n=4)
    assert main(["embed", str(RUN), str(data), "--out", str(folder / "out.npz")]) == 0


@pytest.mark.parametrize(("make", "name", "said"), ALL, ids=IDS)
def test_reading_a_hostile_checkpoint_ends_in_one_error(watch: Watch, make: Any, name: str, said: str) -> None:
    path = watch.folder / "checkpoints" / name
    path.parent.mkdir()
    make(path, watch)
    watch.on = True
    for read in (read_checkpoint, lambda path: SafeCheckpointIO().load_checkpoint(path, weights_only=False)):
        if make in FIT_ONLY:
            assert isinstance(read(path), dict)
            continue
        with pytest.raises(DataError) as error:
            read(path)
        assert said in str(error.value)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("_used_once")
@pytest.mark.parametrize(("make", "name", "said"), ALL, ids=IDS)
def test_a_run_with_a_hostile_checkpoint_is_refused(
    watch: Watch, capsys: pytest.CaptureFixture[str], make: Any, name: str, said: str
) -> None:
    run = watch.folder / "run"
    shutil.copytree(RUN, run)
    (run / "checkpoints" / "best.safetensors").unlink()
    make(run / "checkpoints" / name, watch)
    data = write_synthetic(watch.folder, n=4)
    capsys.readouterr()
    watch.on = True
    code = main(["embed", str(run), str(data), "--out", str(watch.folder / "out.npz")])
    watch.on = False
    err = capsys.readouterr().err
    assert code == (2 if make is link_to_a_device else DataError.exit_code), err  # no file at all: no checkpoint yet
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (watch.folder / "out.npz").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a last.ckpt to go on from."""
    folder = tmp_path_factory.mktemp("trained")
    options = folder / "tiny.yaml"
    options.write_text(
        "data: {batch_size: 16}\nmodel: {hidden: 4, encoders: {smiles: {width: 8, backbone: {depth: 1}}}}\n"
        "trainer: {max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}\n"
    )
    words = ["molecules/property", "--size", "small", "--config", options, "--data.targets", "activity"]
    words += ["--data.path", write_synthetic(folder, n=40), "--out", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
        assert main(["fit", *map(str, words)]) == 0
    return folder / "run"


# What is changed in a good checkpoint that a run goes on from.
MISFITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "weights of another shape": lambda c: c["state_dict"].update({"head.1.weight": torch.zeros(9, 9)}),
    "no weights": lambda c: c.pop("state_dict"),
    "no optimiser": lambda c: c.pop("optimizer_states"),
    "an optimiser of others": lambda c: c.update(optimizer_states=[{"state": {}, "param_groups": []}]),
    "loops of others": lambda c: c.update(loops={"fit_loop": "os.system"}),
    "an unknown target": lambda c: c.update(target={"kind": "os.system"}),
    "a target with other words": lambda c: c["target"].update(command="touch"),
    "transforms of others": lambda c: c.update(MoleculeDataModule={"transforms": [1]}),
}


@pytest.mark.parametrize("name", MISFITS)
def test_going_on_from_what_does_not_fit_ends_in_one_error(
    watch: Watch, run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    ours = watch.folder / "run"
    shutil.copytree(run, ours)
    content = read_checkpoint(ours / "checkpoints" / "last.ckpt")
    MISFITS[name](content)
    torch.save(content, ours / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    watch.on = True
    code = main(["fit", "--resume", str(ours)])
    watch.on = False
    watch.seen[:] = [event for event in watch.seen if "rev-parse" not in event]  # the commit, for environment.json
    err = capsys.readouterr().err
    assert code == DataError.exit_code, err
    assert f"{ours / 'checkpoints'}: this checkpoint does not fit its recipe" in err
    assert len(err.splitlines()) == 1


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("make", [reduce, reduce_legacy, reduce_connects, reduce_writes, instantiator, stretched], ids=lambda make: make.__name__)  # fmt: skip
@pytest.mark.parametrize("weights_only", [None, False])
def test_a_trainer_refuses_it_whatever_it_is_told(watch: Watch, make: Any, weights_only: bool | None) -> None:
    path = watch.folder / "last.ckpt"
    make(path, watch)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, plugins=[SafeCheckpointIO()], default_root_dir=watch.folder, **quiet)
    watch.on = True
    with pytest.raises(DataError):
        trainer.fit(Tiny(), torch.zeros(2, 2), ckpt_path=str(path), weights_only=weights_only)


URLS = (
    "http://HOST/x.ckpt",
    "https://HOST/x.ckpt",
    "s3://HOST/x.ckpt",
    "file:///x.ckpt",
    "hf://HOST/x",
    "ftp://HOST/x",
)


@pytest.mark.parametrize("url", URLS)
def test_no_address_is_asked(watch: Watch, url: str) -> None:
    url = url.replace("HOST", f"127.0.0.1:{watch.server.getsockname()[1]}")
    watch.on = True
    with pytest.raises(DataError, match="local files only"):
        read_checkpoint(url)
    with pytest.raises(DataError, match="local files only"):
        SafeCheckpointIO().load_checkpoint(url)
