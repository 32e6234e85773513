"""Data from the broker, workers and result backends: validated, redacted and bounded."""
