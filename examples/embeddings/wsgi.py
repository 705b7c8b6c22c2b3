"""What gunicorn loads: `gunicorn --pythonpath examples --worker-class gthread --threads 64 embeddings.wsgi:app`."""

from __future__ import annotations

from embeddings.app import create_app
from embeddings.encoder import load_encoder

encoder = load_encoder()
app = create_app(encoder)

# The first request need not pay for what happens only once.
for _embed in (encoder.batched.ubatch, encoder.fifo.ubatch, encoder.unbatched):
    _embed(encoder.tokenise("warm up"))
