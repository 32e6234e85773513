"""
A complete demo on one machine: an embedded broker, a prefork worker, a Django site, the monitor and traffic.

``make demo`` runs it interactively, ``make demo CHECK=1`` runs it as a check.
"""
