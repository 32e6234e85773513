"""The live shell: into the objects that a process that failed still holds, over the broker."""
