"""Sentence embeddings by a transformer, served over HTTP and batched by `ubatch.inference`.

`python examples/embeddings` starts the service under gunicorn, measures it and stops it. The parts, one idea each:
`encoder` is the model with its batchers, `text` reads requests, `app` is the web application and `wsgi` what gunicorn
loads; `load` is the client side, `bench` the measuring, `report` the table and the figures, `cli` the command line.
What serves the search example as well is taken from there: running gunicorn, and the texts, docstrings of Python's
standard library.
"""

import os

# One thread for each forward pass, and as many passes at once as there are cores. A pass that is spread over all cores
# waits at the end of each matrix product for the slowest of them: those that also read requests, or work for others.
# Torch reads it when it is imported, hence here, where every way into the package passes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The weights are part of a package: nothing is asked for elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
