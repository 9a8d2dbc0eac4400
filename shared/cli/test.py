"""`polyfm test RUN`: metrics of the best checkpoint on the test part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyfm.shared.cli.arguments import Arguments
from polyfm.shared.errors import DataError


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
    try:
        model.data.setup("fit")
    except DataError as error:
        if not Path(model.data.path).exists():
            error.remedy = f"If the data were moved, write where they are now into data.path of {model.folder.recipe}"
        raise
    for path in model.folder.changed_files(model.data):
        print(f"{path} has changed since the run was trained: what follows is measured on what it holds now")
    model.data.use_splits(Splits.from_csv(model.folder.path / "splits.csv"))
    for name, value in sorted(measure(model.task, model.data, part).items()):
        print(f"{name:<40} {value:.4f}")
