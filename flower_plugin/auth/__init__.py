"""Who somebody is and what they may do: login, roles, the gate in front of every route, the audit log."""
