"""gunicorn's settings, however it is run: `gunicorn -c python:search.gunicorn_conf search.wsgi:app`."""

# Nobody outside this machine has business here.
bind = "127.0.0.1:8000"

# One process: a batch is made of the requests of one process, so two of them would halve the batches.
workers = 1

# Seconds. An index that is not cached is built before the worker says that it is alive.
timeout = 180
# At a stop, connections that clients keep open without asking anything are not waited for any longer than
# this.
graceful_timeout = 3
keepalive = 30

# The longest question that `question.py` lets pass, in four-byte characters, each byte written as %xx.
limit_request_line = 8190

# No socket for remote control in the user's home. Versions that have none ignore this.
control_socket_disable = True
