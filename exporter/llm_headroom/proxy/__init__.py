"""The measuring proxy: a transparent reverse proxy that turns an engine's traffic into canonical metrics."""
