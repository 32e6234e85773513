"""Around Celery's tracers: the same is heard as by signals, and nothing of the task's is changed."""

from __future__ import annotations

import gc
import sys
import traceback
import uuid
import weakref
from typing import Any

import pytest
from celery import Celery
from celery.app import trace
from celery.exceptions import Ignore, Reject
from celery.signals import task_postrun, task_prerun

from celery_trace.runtime import tracers
from tests.support.run_hooks import WAYS, hooks_of

ENDS = {
    "fail": ValueError,
    "reject": Reject,
    "ignore": Ignore,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
}


class Heard:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str, Any]] = []
        self.ended: list[tuple[str, str, str | None, dict[str, Any]]] = []
        self.passing: list[BaseException | None] = []

    def run_begins(self, task: Any, task_id: str, request: Any) -> None:
        self.begun.append((task.name, task_id, request))

    def run_ends(self, task: Any, task_id: str, state: str | None, **rest: Any) -> None:
        self.ended.append((task.name, task_id, state, rest))
        self.passing.append(sys.exc_info()[1])


@pytest.fixture
def app():
    app = Celery("around", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(x, y):
        return x + y

    @app.task(name="end", bind=True, shared=False)
    def end(self, how):
        if how == "retry":
            raise self.retry(countdown=60)
        raise ENDS[how](how)

    @app.task(name="outer", shared=False)
    def outer():
        return app.tasks["add"].apply((1, 2)).get(disable_sync_subtasks=False)

    app.finalize()
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, "host", app=app)
    yield app
    app.close()


@pytest.fixture(params=WAYS)
def heard(app, request):
    heard = Heard()
    undo = tracers.install(app, hooks_of(request.param)(heard.run_begins, heard.run_ends))
    assert undo is not None
    yield heard
    undo()


def run(app, name, *args, task_id="id"):
    request = {"id": task_id, "task": name, "retries": 2, "is_eager": False, "delivery_info": {"routing_key": "celery"}}
    return app.tasks[name].__trace__(task_id, args, {}, {**request, "args": args, "kwargs": {}})


def test_a_run_is_heard_at_its_begin_and_at_its_end(app, heard):
    assert run(app, "add", 1, 2)[1] is None
    (name, task_id, request), (*_, state, rest) = heard.begun[0], heard.ended[0]
    assert (name, task_id, request["retries"], state, rest) == ("add", "id", 2, "SUCCESS", {})


@pytest.mark.parametrize(("how", "state"), [("fail", "FAILURE"), ("reject", "REJECTED"), ("ignore", "IGNORED")])
def test_an_end_that_is_no_success_has_celerys_word_and_the_error(app, heard, how, state):
    run(app, "end", how)
    assert heard.ended[0][2] == state
    rest = heard.ended[0][3]
    assert type(rest["retval"]) is ENDS[how]
    assert rest["args"] == (how,)
    assert rest["request"]["retries"] == 2


def test_a_retry_is_heard_as_one(app, heard):
    with app.connection_for_write():
        run(app, "end", "retry")
    assert heard.ended[0][2] == "RETRY"


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_what_ends_the_process_passes_with_its_frames_and_without_ours(app, heard, how):
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        run(app, "end", how)
    assert heard.ended[0][2] is None
    assert heard.passing == [caught.value]
    functions = [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert functions[-2:] == ["trace_task", "end"]
    assert "traced" not in functions


def test_an_eager_run_inside_a_run_is_heard_too(app, heard):
    run(app, "outer")
    assert [name for name, *_ in heard.begun] == ["outer", "add"]
    assert [(name, state) for name, _, state, _ in heard.ended] == [("add", "SUCCESS"), ("outer", "SUCCESS")]


def test_a_message_of_a_task_that_succeeded_before_is_no_success_of_its_own(app, heard):
    app.conf.worker_deduplicate_successful_tasks = True
    task = app.tasks["add"]
    task.acks_late = True
    task.__trace__ = trace.build_tracer("add", task, app.loader, "host", app=app)
    task_id = str(uuid.uuid4())  # Celery remembers those that have succeeded
    request = {"id": task_id, "task": "add", "delivery_info": {"redelivered": True}, "is_eager": False}
    for _ in range(2):
        task.__trace__(task_id, (1, 2), {}, dict(request))
    assert [state for _, _, state, _ in heard.ended] == ["SUCCESS", "IGNORED"]


def test_other_peoples_receivers_still_hear(app, heard):
    ends = []
    before = task_prerun.connect(lambda task_id, **_: ends.append(task_id), weak=False, dispatch_uid="before")
    after = task_postrun.connect(lambda state, **_: ends.append(state), weak=False, dispatch_uid="after")
    try:
        for name, task in app.tasks.items():
            task.__trace__ = trace.build_tracer(name, task, app.loader, "host", app=app)
        run(app, "add", 1, 2)
    finally:
        task_prerun.disconnect(before, dispatch_uid="before")
        task_postrun.disconnect(after, dispatch_uid="after")
    assert ends == ["id", "SUCCESS"]


def hooks() -> tracers.Hooks:
    return tracers.Hooks(print, print)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_of_a_hook_takes_the_place_of_the_tasks_and_refers_to_it(app, way):
    def ends(*_, **__):
        raise MemoryError

    tracer = hooks_of(way)(lambda *_: None, ends).observed(app.tasks["end"].__trace__, app.tasks["end"])
    with pytest.raises(MemoryError) as caught:
        tracer("id", ("exit",), {}, {"id": "id", "task": "end"})
    assert type(caught.value.__context__) is SystemExit
    with pytest.raises(MemoryError):
        tracer("id", ("ignore",), {}, {"id": "id", "task": "end"})


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_may_not_begin_does_not(app, way):
    def begins(*_):
        raise TimeoutError

    ran = []
    tracer = hooks_of(way)(begins, print).observed(lambda *call: ran.append(call), app.tasks["add"])
    with pytest.raises(TimeoutError):
        tracer("id", (), {}, request={})
    assert ran == []


@pytest.mark.parametrize("way", WAYS)
def test_the_boundary_of_runs_is_in_the_stack_of_each(app, way):
    def inside(*_):
        frame = sys._getframe()
        while frame is not None:
            codes.append(frame.f_code)
            frame = frame.f_back
        return 1, None, 0.1, None

    codes: list[Any] = []
    tracer = hooks_of(way)(lambda *_: None, lambda *_: None).observed(inside, app.tasks["add"])
    assert tracer("id", (), {})[0] == 1
    assert codes.index(tracers.boundary(tracer)) < codes.index(sys._getframe().f_code)


@pytest.mark.parametrize("way", WAYS)
def test_a_tracer_and_its_hooks_are_released(app, way):
    class Task:
        def heard(self, *_):
            pass

    made = Task()
    made.tracer = hooks_of(way)(made.heard, made.heard).observed(lambda *_: (1, None, 0.1, None), made)
    made.tracer("id", (), {})
    released = weakref.ref(made)
    del made
    gc.collect()
    assert released() is None


def test_undoing_it_leaves_everything_as_it_was(app):
    before = {name: task.__trace__ for name, task in app.tasks.items()}
    build = trace.build_tracer
    undo = tracers.install(app, hooks())
    assert trace.build_tracer is not build
    undo()
    assert trace.build_tracer is build
    assert {name: task.__trace__ for name, task in app.tasks.items()} == before


def test_a_celery_without_tracers_is_left_to_its_signals(app):
    app.tasks["add"].__trace__ = None
    assert tracers.install(app, hooks()) is None
    assert trace.build_tracer.__module__ == "celery.app.trace"
