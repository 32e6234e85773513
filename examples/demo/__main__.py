"""``python -m demo``: runs until Ctrl-C; with ``--check`` until every fact was seen, and reports missing ones."""

import argparse
import signal
import sys
import threading
import time

from celery_trace.text.format import percent
from demo.facts import FACTS, accused, watch
from demo.monitor import Monitor
from demo.programs import DemoError
from demo.stage import QUICK, STUCK_S, Stage
from demo.traffic import Traffic

#: Time limit of a check, seconds; including shutdown it stays under three minutes.
CHECK_S = 150.0


def say(text=""):
    """Print a line at once."""
    print(text, flush=True)


def look_around(stage):
    """Print the addresses and what to look at."""
    budget = float(QUICK["CELERY_TRACE_MEMORY_BUDGET"])
    say(f"""
  Monitor   {stage.login_link}
            (that link works once; later: {stage.monitor_page} with the password {stage.password})
  Site      {stage.site_url}/        a page with a button for each task, and links that fail
  Admin     {stage.site_url}/admin/  user demo, password {stage.admin_password}

  To show results soon, measuring may take up to {percent(budget)} of each process's time in this demo.
  The default is 1 %, so the overhead on its pages is that of the demo.

  What to look at
    Leaks      shop.tasks.remember_order is listed within a minute or so: open it to see its growth, its line and
               what holds the objects. quote fills a bounded cache and rotate_report replaces its report: they only
               look like leaks, and are never called leaking.
    Failures   open one of create_error and type into its shell:  trace.context_data
               Then:  a + c   where   trace.frames[0].locals   help
               GET /error/ is the same failure of a Django view; overrun was killed by its hard time limit.
    Alerts     the rule "leak" fires once the leak is certain; it is sent to a small web server in this demo.
    Running    press reserve_stock on the site: after {STUCK_S} s its first run is stuck, and says what it waits for.
    Queues     how many messages wait, and how long they waited.
    In another terminal, with the same store and broker:
               cd {stage.programs[0].cwd}
               export CELERY_BROKER_URL={stage.broker_url} DEMO_DATA_DIR={stage.folder}
               export CELERY_TRACE_DIR={stage.folder}/trace
               {sys.executable} -m celery -A config trace leaks

  Ctrl-C stops everything and removes all its files. To keep them: make demo ARGS="--keep FOLDER"
""")


def check(stage, traffic):
    """Wait for every fact; returns the exit status."""
    began = time.monotonic()

    def seen(name, title, sentence):
        say(f"ok      {name:<8} {time.monotonic() - began:5.1f} s  {sentence}")

    monitor = Monitor(stage.monitor_url, stage.password)
    missing = watch(stage, monitor, traffic, FACTS, seen, began + CHECK_S)
    for name, reason in missing.items():
        say(f"FAILED  {name:<8} not within {CHECK_S:g} s: {reason}")
    wrong = accused(monitor)
    for fault in wrong:
        say(f"FAILED  {fault}, and nothing leaks there")
    if missing or wrong:
        for program in stage.programs:
            say(program.tail())
    return 1 if missing or wrong else 0


def show(stage, traffic, stop):
    """Run interactively and report visible facts, until ``stop`` is set."""
    look_around(stage)

    def seen(name, title, sentence):
        say(f"  Now visible: {title}\n    {sentence}")

    facts = [fact for fact in FACTS if fact[0] != "shell"]
    watch(stage, Monitor(stage.monitor_url, stage.password), traffic, facts, seen, stopped=stop.is_set)
    while not stop.wait(1.0):
        stage.check()
    return 0


def main():
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="check that everything works, then end")
    parser.add_argument("--keep", metavar="FOLDER", help="write logs and databases to this folder and keep them")
    parser.add_argument("--monitor-port", type=int, default=0, help="by default a free port")
    parser.add_argument("--site-port", type=int, default=0, help="by default a free port")
    options = parser.parse_args()

    stop = threading.Event()

    def on_signal(number, _frame):
        if not stop.is_set():
            stop.set()
            raise KeyboardInterrupt
        # Stopping takes a few seconds; a second signal must not leave processes behind.

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)

    stage = Stage(say, options.keep, options.monitor_port, options.site_port)
    status = 0
    try:
        with stage:
            traffic = Traffic(stage.broker_url, stage.site_url)
            traffic.start()
            try:
                status = check(stage, traffic) if options.check else show(stage, traffic, stop)
            except KeyboardInterrupt:
                status = 130 if options.check else 0
            finally:
                stop.set()
                say("Stopping …")
                traffic.stop()
            if status == 1:
                raise DemoError("not everything was seen")
    except KeyboardInterrupt:
        status = 130 if options.check else 0
    except DemoError as error:
        say(f"FAILED  {error}")
        status = 1
    for leftover in stage.leftovers:
        say(f"FAILED  left behind: {leftover}")
        status = status or 1
    if not stage.leftovers:
        say("Everything has stopped; nothing was left behind.")
    return status


if __name__ == "__main__":
    sys.exit(main())
