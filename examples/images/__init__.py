"""Photographs decoded and classified in two steps of a flow, in child processes, served over HTTP.

`python examples/images` starts the service, measures it and stops it. The parts, one idea each: `photographs` are those
that scikit-image ships, `decode` is the first step, `model` what the second one computes and where that is kept,
`pipeline` the flow of both; `service` is what the three web applications share: `flask_app`, `aiohttp_app`,
`fastapi_app`; `wsgi` is what gunicorn loads. `load` is the client side, `bench` the measuring, `report` the tables and
the figures, `cli` the command line. What serves other examples as well is taken from there.
"""

import os

# One thread for each product of matrices: as many processes as cores compute already. numpy reads it when it is
# imported, hence here, where every way into the package passes, also those of the child processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
