"""The recreated shell: a stored failure in a separate, sandboxed process."""
