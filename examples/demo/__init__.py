"""
The whole thing on one machine: an embedded broker, a prefork worker, a Django site, the monitor and traffic.

``make demo`` runs it for a person, ``make demo CHECK=1`` runs it without one.
"""
