"""A stored failure as a test, or as a run under the debugger: its arguments, and whether the same error is raised."""
