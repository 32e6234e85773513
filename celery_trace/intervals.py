"""
Times that several parts rely on: how often a process reports, and when its silence means something.

What writes, the rules, the queries, the pages and their scripts read them here.
"""

from __future__ import annotations

from typing import Final

#: How often a process reads its memory, seconds.
SAMPLE_S: Final = 10.0
#: An idle process, or one whose memory stays the same, writes a sample at least this often, seconds.
SAMPLE_IDLE_S: Final = 300.0
#: Length of the time that one rollup sums up, seconds.
ROLLUP_S: Final = 300
#: Two samples further apart than this have a gap between them: the process was gone or not measured, seconds.
SAMPLE_GAP_S: Final = 400.0
#: Samples no further apart than this are drawn as one line; between others nothing is known to have changed, seconds.
SAMPLES_IN_A_ROW_S: Final = 3 * SAMPLE_S
#: A process that has written nothing for this long is not counted as running, seconds.
SILENT_S: Final = 900.0
