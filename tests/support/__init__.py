"""Helpers that several tiers share; each module is about one thing that tests start, wait for or look at."""
