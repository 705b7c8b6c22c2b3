"""`python examples/search`."""

import sys
from pathlib import Path

if not __package__:
    # Python put this folder at the head of its path. The folder above is meant: `search` is the package,
    # and its modules must not stand in for others of the same name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from search.cli import main

sys.exit(main())
