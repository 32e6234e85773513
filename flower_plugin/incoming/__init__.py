"""What comes from the broker, workers and result backends: checked, redacted and bounded before anybody sees it."""
