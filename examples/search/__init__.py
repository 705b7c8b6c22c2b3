"""Vector search over Python's own standard library, served over HTTP and batched by ubatch.

`python examples/search` starts the service under gunicorn, measures it and stops it. The parts, one idea
each: `collect` lists the library's definitions, `vectors` turns text into vectors, `index` searches them
exactly, `cache` keeps them on disk, `question` reads what is asked; `app` is the web application with its page
(`templates`, `static`), `watch` what it tells about itself, `wsgi` what gunicorn loads; `server` runs gunicorn,
`load` is the client side, `bench` the measuring, `report` the table and the chart, `cli` the command line.
"""

import os

# One BLAS thread for each product, unless the environment says otherwise. BLAS would use every core for one
# product, but a server has better use for them: while one core multiplies, another reads requests and writes
# answers, and pool threads that spin between two products would take that core away. It must be said before
# numpy is imported, hence here, where every way into the package passes. It also leaves BLAS without threads
# of its own, so there are none to lose when gunicorn forks after `--preload`.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")
