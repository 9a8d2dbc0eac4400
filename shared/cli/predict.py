"""`polyfm predict RUN INPUT --out FILE`: predictions for new items, in the input's order, with their ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyfm.shared.cli.arguments import READING, Arguments, reading_options, result_file, tell_reading


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``predict``.
    """
    parser = Arguments("predict", "Predictions for each item of INPUT, in its order, with its id.", READING)
    parser.add_argument("run", help="folder of a fine-tuned run, or of an ensemble")
    parser.add_argument("input", help="file with new items")
    parser.add_argument("--out", required=True, help="result: .csv or .parquet")
    ours, given = parser.parse_reading(words)
    out = result_file(ours.out, ours.input, (".csv", ".parquet"), "predictions.csv")

    import pandas as pd

    from polyfm.shared.deployment.ensemble import members, predict
    from polyfm.shared.deployment.inference import data_of

    reading = reading_options(given, data_of(members(ours.run)[0])) if given else {}
    predictions = predict(ours.run, Path(ours.input), **reading)
    table = pd.DataFrame({"id": predictions.ids})
    for i, name in enumerate(predictions.names):
        table[name] = predictions.values[:, i]
        if predictions.spread is not None:
            table[f"{name}_sd"] = predictions.spread[:, i]
    for name, classes in predictions.answers.items():
        table[name] = classes
    if out.suffix == ".csv":
        table.to_csv(out, index=False)
    else:
        table.to_parquet(out, index=False)
    print(f"{len(table):,} predictions: {out}")
    tell_reading(predictions.data, out)
