"""Objects of Django and SQLAlchemy in a frame that failed: as what they are, and no query is run to tell it."""

import contextlib

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from celery_trace.failures.capture import capture_exception, render
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits

pytest_plugins = ["tests.support.fixtures_django"]

LIMITS = Limits()
REDACTOR = Redactor()


class Seen:
    """The locals of the frame that failed, after capture."""

    def __init__(self, **values):
        try:
            _fail(values)
        except ZeroDivisionError as error:
            self.capture = capture_exception(error, limits=LIMITS, redactor=REDACTOR)
        self.bytes = msgspec.json.encode(self.capture)
        self._values = self._entries(self._local("values"))

    def _local(self, name):
        frame = self.capture.exceptions[0].frames[0]
        return next(local.ref for local in frame.locals if local.name == name)

    def _entries(self, ref):
        items = self.capture.heap[ref].items
        return {self.capture.heap[key].value: value for key, value in zip(items[::2], items[1::2], strict=True)}

    def node(self, name):
        return self.capture.heap[self._values[name]]

    def part(self, name, attribute):
        node = self.node(name)
        return self.capture.heap[node.items[node.names.index(attribute)]]

    def text(self, name):
        return render.text(self.capture.heap, self._values[name], 500)


def _fail(values):
    return 1 / (len(values) - len(values))


# --- Django ---------------------------------------------------------------------------------------------


@pytest.fixture
def django(django_database):
    from django.db import connection, transaction

    with contextlib.closing(connection), transaction.atomic():
        yield connection
        transaction.set_rollback(True)


@pytest.fixture
def no_query(django):
    """From here on a query is an error that nobody would swallow unseen: they are counted."""
    queries = []

    def count(execute, sql, params, many, context):
        queries.append(sql)
        return execute(sql, params, many, context)

    with contextlib.ExitStack() as stack:
        yield lambda: (stack.enter_context(django.execute_wrapper(count)), queries)[1]


@pytest.fixture
def ada(django):
    from django.contrib.auth.models import User

    return User.objects.create(
        username="ada-of-frameworks", email="ada@example.org", password="pbkdf2-of-a-secret", first_name="Ada"
    )


def test_a_model_shows_its_loaded_fields_and_names_the_deferred_ones(ada, no_query):
    from django.contrib.auth.models import User

    user = User.objects.only("username").get(pk=ada.pk)
    queries = no_query()
    seen = Seen(user=user)
    assert queries == []
    assert seen.node("user").form == "model"
    assert seen.node("user").names[0] == "id"
    assert seen.part("user", "username").value == "ada-of-frameworks"
    assert "auth.User" in seen.node("user").note
    assert "email" in seen.node("user").note
    assert "email" not in seen.node("user").names


def test_a_models_secret_fields_are_redacted_wherever_they_stand(ada, no_query):
    queries = no_query()
    seen = Seen(user=ada, copied=f"hash {ada.password}")
    assert queries == []
    assert seen.part("user", "password").kind == "redacted"
    assert b"pbkdf2-of-a-secret" not in seen.bytes


def test_a_relation_is_shown_when_it_was_fetched_and_not_fetched_when_not(ada, no_query):
    from django.contrib.admin.models import ADDITION, LogEntry

    LogEntry.objects.create(user=ada, action_flag=ADDITION, object_repr="x")
    lazy = LogEntry.objects.get(user=ada)
    fetched = LogEntry.objects.select_related("user").get(user=ada)
    queries = no_query()
    seen = Seen(lazy=lazy, fetched=fetched)
    assert queries == []
    assert "user" not in seen.node("lazy").names
    assert seen.part("lazy", "user_id").value == ada.pk
    assert seen.part("fetched", "user").form == "model"


def test_a_queryset_shows_the_rows_that_it_holds_and_asks_for_none(ada, no_query):
    from django.contrib.auth.models import User

    fetched = User.objects.filter(username=ada.username)
    assert len(fetched) == 1
    lazy = User.objects.all()
    queries = no_query()
    seen = Seen(lazy=lazy, fetched=fetched)
    assert queries == []
    assert (seen.node("lazy").form, seen.node("lazy").items) == ("queryset", [])
    assert "not evaluated" in seen.node("lazy").note
    assert seen.node("fetched").length == 1
    assert lazy._result_cache is None


def test_a_form_shows_what_was_sent_and_what_was_wrong_without_validating_it(django):
    from django import forms

    class SignUp(forms.Form):
        name = forms.CharField()
        password = forms.CharField()

        def clean(self):
            raise AssertionError("capturing validates nothing")

    form = SignUp(data={"name": "Ada", "password": "correct horse battery"})
    seen = Seen(form=form)
    assert seen.node("form").form == "form"
    assert seen.part("form", "is_bound").value is True
    assert seen.part("form", "errors").value is None  # not validated yet, and not by us
    assert "Ada" in seen.text("form")
    assert b"correct horse" not in seen.bytes


def test_a_request_shows_what_was_parsed_and_its_body_is_not_read(django):
    from django.test import RequestFactory

    request = RequestFactory().post("/orders/?page=2", {"card": "4111111111111111", "item": "book"})
    request.COOKIES["sessionid"] = "abcdef123456"
    seen = Seen(request=request)
    assert seen.node("request").form == "request"
    assert seen.part("request", "method").value == "POST"
    assert "POST" not in seen.node("request").names
    assert not request._read_started

    assert request.POST["item"] == "book"
    seen = Seen(request=request)
    assert "book" in render.text(seen.capture.heap, seen.capture.heap.index(seen.part("request", "POST")), 500)
    assert b"4111111111111111" not in seen.bytes
    assert b"abcdef123456" not in seen.bytes


def test_sensitive_post_parameters_hide_what_was_sent(django):
    from django.test import RequestFactory

    request = RequestFactory().post("/", {"answer": "forty-two-is-it"})
    assert request.POST
    request.sensitive_post_parameters = "__ALL__"
    assert b"forty-two-is-it" not in Seen(request=request).bytes


# --- SQLAlchemy -----------------------------------------------------------------------------------------


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    api_key: orm.Mapped[str] = orm.mapped_column(default="")
    orders: orm.Mapped[list["Order"]] = orm.relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "order"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customer.id"))
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


@pytest.fixture
def session():
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Customer(id=1, name="Ada", api_key="key-of-ada-1234", orders=[Order(id=5)]))
        session.commit()
        yield session
    engine.dispose()


@pytest.fixture
def statements(session):
    """What is sent to the database from now on."""
    sent = []
    sa.event.listen(session.get_bind(), "before_cursor_execute", lambda *call: sent.append(call[2]))
    return sent


def test_a_mapped_object_shows_what_is_loaded_and_loads_nothing(session, statements):
    customer = session.get(Customer, 1)
    statements.clear()
    seen = Seen(customer=customer)
    assert statements == []
    assert seen.node("customer").form == "model"
    assert seen.part("customer", "name").value == "Ada"
    assert "orders" not in seen.node("customer").names
    assert seen.part("customer", "api_key").kind == "redacted"
    assert b"key-of-ada-1234" not in seen.bytes


def test_an_expired_object_stays_expired(session, statements):
    customer = session.get(Customer, 1)
    session.expire(customer)
    statements.clear()
    seen = Seen(customer=customer)
    assert statements == []
    assert "name" not in seen.node("customer").names
    assert "expired: " in seen.node("customer").note
    assert "name" in seen.node("customer").note


def test_a_row_shows_its_columns_by_name_without_secrets(session):
    row = session.execute(sa.select(Customer.id, Customer.name, Customer.api_key)).one()
    seen = Seen(row=row)
    assert seen.node("row").form == "row"
    assert seen.part("row", "name").value == "Ada"
    assert seen.part("row", "api_key").kind == "redacted"
    assert b"key-of-ada-1234" not in seen.bytes


def test_a_statement_and_a_query_are_not_run(session, statements):
    query = session.query(Customer)
    statements.clear()
    Seen(query=query, statement=sa.select(Customer), session=session, result=session.get_bind())
    assert statements == []
