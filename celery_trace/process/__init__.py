"""What can be read of one process: its memory, its limits, and a black box that survives its end."""
