"""Derived signals: pure functions from points to points, one module for each family of signals."""
