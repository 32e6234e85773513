"""Alerts: rules, states, and notifications over channels."""
