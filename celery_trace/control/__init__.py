"""Signed messages to running workers, and the audit log."""
