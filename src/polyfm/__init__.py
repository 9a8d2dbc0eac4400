"""polyfm: domain-specialised foundation models on one Lightning stack.

>>> import polyfm
>>> model = polyfm.load("runs/spmm")  # doctest: +SKIP
>>> model.embed(["CCO", "c1ccccc1"]).shape  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "predict"]

# In a checkout, shared/ and domains/ stand at the root, beside src/: put the root on this package's own path, so that
# `polyfm.shared` is found there and nothing of ours ever becomes a top-level module. In a wheel they lie inside.
_root = Path(__file__).resolve().parents[2]
if (_root / "pyproject.toml").is_file() and (_root / "shared").is_dir():
    __path__.insert(0, str(_root))

if TYPE_CHECKING:
    from polyfm.shared.deployment.ensemble import predict
    from polyfm.shared.deployment.inference import load


def __getattr__(name: str) -> Any:
    """Import heavy names on first use, so that ``import polyfm`` stays fast."""
    if name == "load":
        from polyfm.shared.deployment.inference import load

        return load
    if name == "predict":
        from polyfm.shared.deployment.ensemble import predict

        return predict
    raise AttributeError(f"module 'polyfm' has no attribute {name!r}")
