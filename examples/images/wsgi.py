"""What gunicorn loads: `gunicorn --pythonpath examples --worker-class gthread --threads 64 images.wsgi:app`.

`IMAGES_CACHE` names the folder where the model is kept.
"""

from __future__ import annotations

from images.flask_app import create_app
from images.photographs import FILES, encoded, photograph
from images.pipeline import create_flow

flow = create_flow().start()
app = create_app(flow)

# The first request need not pay for what happens only once. With `--preload` this runs before the fork: each worker
# takes the flow over as the parent left it, and starts children of its own for the images that come.
flow.ubatch(encoded(photograph(FILES["cat"])))
