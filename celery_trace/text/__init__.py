"""Formatting and parsing for all readers: sizes, times, escapes, settings' values, and the owner of a file's code."""
