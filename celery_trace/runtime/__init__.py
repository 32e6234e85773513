"""What runs inside a traced process: the plugin, what it connects to, and the recorder that all records pass."""
