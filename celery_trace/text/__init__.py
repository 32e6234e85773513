"""How facts read everywhere: sizes, times, escapes, what settings may say, and whose code a file is."""
