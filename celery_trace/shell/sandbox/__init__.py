"""The recreated shell: a stored failure in a sandboxed program of its own."""
