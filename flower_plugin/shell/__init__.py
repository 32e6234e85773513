"""
Shell sessions in the browser, shared by several users.

``socket`` is the connection of one user, ``rooms`` finds the room of a failure, ``room`` has its session and users,
``transcript`` its lines, ``output`` passes a command's output to the loop, ``messages`` defines the protocol,
``opener`` opens sessions and ``threads`` runs their blocking calls.
"""
