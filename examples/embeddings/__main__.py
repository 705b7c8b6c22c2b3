"""`python examples/embeddings`."""

import sys
from pathlib import Path

if not __package__:
    # Python put this folder at the head of its path. The folder above is meant: `embeddings` is the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from embeddings.cli import main

sys.exit(main())
