"""How good the load headroom is: found by bisection on simulated engines, and estimated by us and by others."""
