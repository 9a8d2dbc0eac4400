"""Makes the golden runs of this version: ``python -m tests.golden.make``, once per release, never for one that exists.

Each is a tiny run in the exchange format with what it computed when it was made. Every later version must load it and
compute the same (`test_golden.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import yaml

import polyfm
from polyfm.domains.molecules.synthetic import write_synthetic
from polyfm.shared.cli.main import main
from polyfm.shared.training.checkpoint import read_checkpoint, write_exchange
from polyfm.shared.training.recipe import shareable

HERE = Path(__file__).parent
ITEMS = ["CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1", "CN1CCC[C@H]1c1cccnc1", "OC(=O)c1ccccc1OC(C)=O", "[Na+].[Cl-]"]
TINY = {
    "spmm": """\
data: {batch_size: 16}
model:
  encoders:
    smiles: &tiny {width: 24, backbone: {depth: 1, block: {heads: 2, hidden: 32}}, projection: 8}
    properties: *tiny
  fusion: {width: 24, backbone: {depth: 1, block: {heads: 2, hidden: 32}}}
  objectives: {contrast: {queue: 32}}
trainer: {max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
""",
    "property": """\
data: {batch_size: 16}
model: {hidden: 8}
trainer: {max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
""",
}


def make(folder: Path) -> None:
    """Train, pack and keep what the runs compute.

    Args:
        folder: Of this version's golden runs; must not exist.
    """
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        data = write_synthetic(Path(work), n=80)
        for name, options in TINY.items():
            (Path(work) / f"{name}.yaml").write_text(options)
            words = ["fit", f"molecules/{name}", "--config", f"{work}/{name}.yaml", "--size", "small"]
            words += ["--data.path", str(data), "--out", f"{work}/{name}"]
            words += ["--data.targets", "activity", "--init_from", f"{work}/spmm"] if name == "property" else []
            if main(words):
                raise SystemExit(f"{name} did not train")
            pack(Path(work) / name, folder / name)


def pack(run: Path, to: Path) -> None:
    """A run as it may be passed on, with what it computes.

    Args:
        run: As trained.
        to: Written.
    """
    (to / "checkpoints").mkdir(parents=True)
    write_exchange(read_checkpoint(run / "checkpoints" / "best.ckpt"), to / "checkpoints" / "best.safetensors")
    (to / "recipe.yaml").write_text(shareable((run / "recipe.yaml").read_text()))
    model = polyfm.load(to)
    found: dict[str, object] = {"items": ITEMS}
    found["embeddings"] = {name: model.embed(ITEMS, name).tolist() for name in model.modalities}
    if yaml.safe_load((to / "recipe.yaml").read_text())["task"] == "finetune":
        found["predictions"] = model.predict(ITEMS).values.tolist()
    (to / "expected.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    target = HERE / polyfm.__version__
    if target.exists():
        raise SystemExit(f"{target} exists; a golden run is never made again")
    try:
        make(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
