"""Authentication and authorization: login, roles, the gate in front of all routes, the audit log."""
