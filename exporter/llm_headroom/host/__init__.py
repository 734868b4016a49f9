"""Processes, control groups and memory of the engines on this host, read from /proc and /sys."""
