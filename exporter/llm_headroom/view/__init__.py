"""What the status page and `top` show: pure functions from snapshots and a short history to frozen values."""
