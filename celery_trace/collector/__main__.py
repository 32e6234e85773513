"""``python -m celery_trace.collector``."""

import sys

from celery_trace.collector.program import main

sys.exit(main())
