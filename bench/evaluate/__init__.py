"""How good alerts and risks are: replayed traffic on simulated engines, and rules that a real Prometheus evaluates."""
