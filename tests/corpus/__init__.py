"""Leaks and decoys, one task each, that run in real workers; the line to be found carries a mark."""
