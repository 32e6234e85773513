"""Signed orders to running workers, and the log of who gave which."""
