"""
Shell sessions in the browser: several people around one failure.

``socket`` is one person's line, ``rooms`` finds the room of a failure, ``room`` holds its session and the people,
``transcript`` what was said there, ``output`` carries a command's output to the loop, ``messages`` has all words of the
line, ``opener`` opens sessions and ``threads`` is where they block.
"""
