"""`polyfm test RUN`: metrics of the best checkpoint on the test part."""

from __future__ import annotations

from collections.abc import Sequence

from polyfm.shared.cli.arguments import Arguments


def run(words: Sequence[str], part: str = "test") -> None:
    """Run the verb.

    Args:
        words: After the verb.
        part: test or valid.
    """
    verb = "test" if part == "test" else "validate"
    parser = Arguments(verb, f"Metrics of a run's best checkpoint on its {part} part, as split when it was trained.")
    parser.add_argument("run", help="folder of a run")
    ours = parser.parse(words)

    from polyfm.shared.data.splits import Splits
    from polyfm.shared.deployment.inference import load
    from polyfm.shared.evaluation.finish import measure

    model = load(ours.run)
    model.data.setup("fit")
    model.data.use_splits(Splits.from_csv(model.folder.path / "splits.csv"))
    for name, value in sorted(measure(model.task, model.data, part).items()):
        print(f"{name:<40} {value:.4f}")
