"""Sockets, worker threads and files, for every package above it."""
