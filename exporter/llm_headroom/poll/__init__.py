"""The loop over all targets, and all that is remembered between its rounds."""
