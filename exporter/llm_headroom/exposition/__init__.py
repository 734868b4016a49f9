"""Text formats that engines expose, read into samples; knows nothing of engines."""
