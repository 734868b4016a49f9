"""Settings as typed structures, and how they are read."""
