"""The handlers that every page and every answer of ours stands on, and the addresses that belong to no other room."""
