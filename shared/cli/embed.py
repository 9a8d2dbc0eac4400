"""`polyfm embed RUN INPUT --out FILE`: one vector per item, in the input's order, with its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyfm.shared.cli.arguments import READING, Arguments, reading_options, result_file, tell_reading

FEW = 32
"""Items that tell which modality a file has."""


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``embed``.
    """
    parser = Arguments("embed", "One vector per item of INPUT, in its order, with its id.", READING)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("input", help="file with new items")
    parser.add_argument("--out", required=True, help="result: .parquet or .npz, or the field's own (.h5ad)")
    parser.add_argument("--modality", default="", help="which encoder; by default the run's first that the items have")
    parser.add_argument("--projected", action="store_true", help="unit vectors of the contrastive space")
    ours, given = parser.parse_reading(words)

    import numpy as np

    from polyfm.shared.deployment.inference import data_of, load

    kind = data_of(ours.run)
    out = result_file(ours.out, ours.input, (".parquet", ".npz", *kind.SAVES), "vectors.parquet")
    reading = reading_options(given, kind)
    model = load(ours.run)
    items = model.data.samples_from(Path(ours.input), **reading)
    name = ours.modality or (model.modality_of(next(model.batches(items[:FEW]))) if items else "")
    if out.suffix in model.data.SAVES:
        vectors = model.data.save_vectors(model, Path(ours.input), out, items, name, projected=ours.projected)
    else:
        vectors = model.embed(items, name, projected=ours.projected)
        save(out, model.data.ids_of(items), vectors)
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers: {out}")
    others = [other for other in model.modalities if other != name]
    if others and not ours.modality:
        print(f"made of {name}; --modality makes them of {' or '.join(others)}")
    if lacking := int(np.isnan(vectors).all(axis=1).sum()):
        print(f"{lacking:,} items have no {name}: NaN in their place")
    tell_reading(model.data, out)


def save(out: Path, ids: list[str], vectors: Any) -> None:
    """Write ids and vectors.

    Args:
        out: .parquet (columns id, and embedding as a list of fixed size) or .npz (arrays id, embedding).
        ids: n ids.
        vectors: (n, D).
    """
    import numpy as np

    if out.suffix == ".npz":
        np.savez_compressed(out, id=np.array(ids, dtype=str), embedding=vectors)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "embedding": column}), out)
