"""What `make run` shows: a real model, served, asked about real files, and its answers checked."""
