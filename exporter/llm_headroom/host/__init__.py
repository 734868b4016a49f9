"""What /proc and /sys tell of the engines on this host: their processes, their control groups, their memory."""
