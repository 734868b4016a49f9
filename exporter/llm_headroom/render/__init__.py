"""Renderers: snapshots in, an output format out. Nothing else knows these formats."""
