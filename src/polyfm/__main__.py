"""``python -m polyfm`` and the ``polyfm`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from polyfm.shared.cli.main import main as run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before, or after, the verb says so itself
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
