"""
Times that several parts rely on: how often a process reports, and when its silence means something.

Writers, rules, queries, pages and their scripts read them here.
"""

from __future__ import annotations

from typing import Final

#: How often a process reads its memory, seconds.
SAMPLE_S: Final = 10.0
#: An idle process, or one with unchanged memory, writes a sample at least this often, seconds.
SAMPLE_IDLE_S: Final = 300.0
#: Change of the resident size, as a share, that makes a sample worth writing earlier.
SAMPLE_CHANGE: Final = 0.01
#: The period of one rollup, seconds.
ROLLUP_S: Final = 300
#: Two samples further apart than this have a gap between them: the process was gone or not measured, seconds.
SAMPLE_GAP_S: Final = SAMPLE_IDLE_S + 100.0
#: Heap profiles are written so long after the start, and no more often than this, seconds.
PROFILE_FIRST_S: Final = 60.0
PROFILE_S: Final = 300.0
#: A process that has written nothing for this long and did not end is counted as gone: its host may have died. Seconds.
SILENT_S: Final = 3 * SAMPLE_IDLE_S
