"""Where ``celery trace diagnose`` gets its facts: one small function for each source, in a list."""
