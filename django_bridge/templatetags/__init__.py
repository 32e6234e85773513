"""Filters of our admin templates."""
