"""The live shell: access over the broker to the objects that a failed process still holds."""
