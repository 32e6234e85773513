"""Signed orders to running workers, and the audit log."""
