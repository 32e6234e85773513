"""Base classes of handlers, and handlers that belong to no other package."""
