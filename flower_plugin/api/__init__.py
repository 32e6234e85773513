"""The JSON of the contract, and metrics."""
