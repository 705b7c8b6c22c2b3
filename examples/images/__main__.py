"""`python examples/images`."""

import sys
from pathlib import Path

if not __package__:
    # Python put this folder at the head of its path. The folder above is meant: `images` is the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from images.cli import main

sys.exit(main())
