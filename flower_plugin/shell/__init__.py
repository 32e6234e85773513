"""Shell sessions in the browser."""
