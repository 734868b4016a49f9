"""Sockets, worker threads and files, for every room above."""
