"""Alerts: the rules, the states that they lead to, and who is notified of them, over which channel."""
