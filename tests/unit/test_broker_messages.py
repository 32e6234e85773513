"""Any message that the broker can hand out: it is read or refused, and nothing of it raises, inflates or decodes."""

from __future__ import annotations

import bz2
import codecs
import functools
import json
import zlib
from types import SimpleNamespace
from typing import Any

import amqp.basic_message
import kombu.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.transport import pyamqp
from kombu.transport.virtual import Channel as VirtualChannel
from kombu.transport.virtual import Message as VirtualMessage

from celery_trace.clock import FakeClock, SystemClock
from celery_trace.control.orders import OrderReceiver
from celery_trace.control.signing import MessageRefused, sign, verify
from celery_trace.model import ProcessRecord, Stats
from celery_trace.settings import Settings
from celery_trace.transports import intake
from celery_trace.transports.broker import CorruptBatch, inflate, pack_batch, read_lines
from celery_trace.transports.intake import read_item
from celery_trace.transports.raw import MOST_HEADER_BYTES, RawRefusal, RedisEntry, checked_channel, entry

MOST = 1000
KEY = b"k" * 32

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6
)
headers = st.dictionaries(st.sampled_from(["compression", "ticket", "expires", "clock", "x"]), values) | values
encodings = st.sampled_from(["base64", "utf-8", "binary", "idna", "zlib", "none-such", None]) | scalars


def amqp_channel() -> Any:
    return checked_channel(SimpleNamespace(Message=pyamqp.Message, auto_decode=True, no_ack_consumers=set()), MOST)


def amqp_message(channel: Any, body: Any = b"body", **properties: Any) -> Any:
    raw = amqp.basic_message.Message(body)
    raw.properties = properties
    raw.delivery_info = {"delivery_tag": 7, "consumer_tag": "c"}
    return channel.Message(raw, channel=channel)


def virtual_channel(most_bytes: int = MOST, **options: Any) -> Any:
    channel = SimpleNamespace(Message=VirtualMessage, codecs=VirtualChannel.codecs, no_ack_consumers=set())
    channel.decode_body = lambda body, encoding=None: VirtualChannel.decode_body(channel, body, encoding)
    return checked_channel(channel, most_bytes, **options)


@functools.cache
def bomb() -> bytes:
    """Ten megabytes, compressed."""
    return bz2.compress(bytes(10_000_000))


@pytest.fixture
def never_inflates(monkeypatch: pytest.MonkeyPatch) -> None:
    def inflating(*_: Any) -> None:
        raise AssertionError("kombu was made to inflate a stranger's body")

    monkeypatch.setattr(kombu.message, "decompress", inflating)


# --- RabbitMQ ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_inflates")
@pytest.mark.parametrize("compression", ["application/x-bz2", "application/x-gzip", "bzip2", "no such", 5, [1], b"x"])
def test_a_compressed_message_of_rabbitmq_is_refused_as_it_stands(compression: Any) -> None:
    body = bomb()
    message = amqp_message(amqp_channel(), body, application_headers={"compression": compression})
    assert message.refused is not None
    assert message.refused.why == "compressed"
    assert message.body == body
    assert message.errors == []
    assert message.delivery_tag == 7


def test_a_message_of_rabbitmq_that_is_too_big_is_refused_and_not_kept() -> None:
    message = amqp_message(amqp_channel(), b"x" * 5000)
    assert message.refused == RawRefusal("too_big", "5,000 bytes; at most 1,000 are read")
    assert message.body == b""
    assert message.delivery_tag == 7


def test_a_good_message_of_rabbitmq_is_handed_on() -> None:
    message = amqp_message(amqp_channel(), b"x" * MOST, application_headers={"why": "x"}, content_type="a/b")
    assert message.refused is None
    assert (message.body, message.headers, message.content_type) == (b"x" * MOST, {"why": "x"}, "a/b")


def test_the_codec_that_a_message_names_is_not_asked() -> None:
    """Py-amqp would decode the body by it when it arrives; punycode and idna take quadratic time."""
    assert codecs.lookup("punycode")
    assert amqp_channel().auto_decode is False


@given(body=st.binary(max_size=1200) | values, application_headers=headers, content_encoding=encodings)
@settings(max_examples=100)
def test_any_message_of_rabbitmq_is_read_or_refused(body: Any, application_headers: Any, content_encoding: Any) -> None:
    message = amqp_message(
        amqp_channel(), body, application_headers=application_headers, content_encoding=content_encoding
    )
    assert message.errors == []
    assert isinstance(message.body, bytes | str)
    assert message.refused is None or message.refused.why in ("too_big", "compressed", "malformed")
    if isinstance(application_headers, dict) and application_headers.get("compression"):
        assert message.refused is not None


# --- Redis and the other brokers that kombu keeps messages in as JSON -------------------------------------


@pytest.mark.usefixtures("never_inflates")
@given(
    payload=st.fixed_dictionaries(
        {},
        optional={
            "body": st.text(max_size=40) | st.binary(max_size=20) | values,
            "headers": headers,
            "content-type": scalars,
            "content-encoding": encodings,
            "properties": values
            | st.fixed_dictionaries(
                {}, optional={"delivery_tag": values, "delivery_info": values, "body_encoding": encodings}
            ),
        },
    )
    | values
)
@settings(max_examples=150)
def test_any_entry_of_a_virtual_broker_is_read_or_refused(payload: Any) -> None:
    channel = virtual_channel()
    acknowledged: set[Any] = set()
    channel.basic_ack = lambda tag, multiple: acknowledged.add(tag)
    message = channel.Message(payload, channel=channel)
    assert message.errors == []
    assert isinstance(message.body, bytes | str)
    message.ack()
    assert acknowledged == {message.delivery_tag}


@given(item=st.binary(max_size=300) | values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=120)
def test_any_bytes_in_a_list_are_an_entry_or_refused(item: bytes) -> None:
    assert isinstance(entry(item, MOST), RedisEntry | RawRefusal)
    body, refused = read_item(item)
    assert isinstance(body, bytes)
    assert refused is None or refused.why


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (b'{"body": "' + b"x" * 100_000 + b'"}', "too_big"),
        (b'{"headers": {"x": "' + b"x" * MOST_HEADER_BYTES + b'"}}', "too_big"),
        # Since Python 3.14 the size of the C stack limits the depth.
        (b'{"properties": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "malformed or too_big"),
        (b"[" * 60_000, "malformed"),
        (b'{"headers": {"x": ' + b"9" * 30_000 + b"}}", "malformed"),
        (b'{"body": "\xff"}', "malformed"),
        (b'{"body": "x"', "malformed"),
    ],
)
def test_what_is_no_entry_is_refused_for_the_right_reason(item: bytes, why: str) -> None:
    refused = entry(item, MOST)
    assert isinstance(refused, RawRefusal)
    assert refused.why in why.split(" or ")
    assert len(refused.text) <= 300


def popped(item: bytes) -> tuple[Any, list[RawRefusal]]:
    """What kombu is given where the server answered BRPOP with an entry."""
    refusals: list[RawRefusal] = []
    client = SimpleNamespace(parse_response=lambda *_, **__: [b"queue", item])
    channel = SimpleNamespace(Message=VirtualMessage, client=client)
    checked_channel(channel, MOST, unreadable=refusals.append)
    return client.parse_response(None, "BRPOP"), refusals


@given(item=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100)
def test_kombu_gets_json_that_it_can_read_or_nothing(item: bytes) -> None:
    answer, refusals = popped(item)
    if answer is None:
        assert len(refusals) == 1
    else:
        assert set(json.loads(answer[1])) == {"body", "headers", "properties", "content-type", "content-encoding"}


def test_a_value_that_kombus_json_would_make_an_object_of_is_refused() -> None:
    for key in (b"__type__", b"\\u005f_type__"):
        answer, refusals = popped(b'{"body": "eA==", "headers": {"x": {"' + key + b'": "datetime", "__value__": 5}}}')
        assert answer is None
        assert [refusal.why for refusal in refusals] == ["malformed"]


def test_other_commands_of_that_client_are_not_touched() -> None:
    client = SimpleNamespace(parse_response=lambda *_, **__: b"whatever")
    checked_channel(SimpleNamespace(Message=VirtualMessage, client=client), MOST)
    assert client.parse_response(None, "LLEN") == b"whatever"


def test_a_refused_message_is_one_that_remote_control_passes_over() -> None:
    message = virtual_channel().Message({"body": 5, "properties": {"delivery_tag": "t"}}, channel=None)
    assert message.headers == {"expires": 1}
    assert message.delivery_tag == "t"


def test_decoding_a_refused_message_gives_its_bytes() -> None:
    body = bz2.compress(bytes(1000))
    message = amqp_message(
        amqp_channel(), body, application_headers={"compression": "bzip2"}, content_type="application/json"
    )
    message.accept = {"application/json"}
    assert message.decode() == body


# --- what stands in the bodies ----------------------------------------------------------------------------


@given(data=st.binary(max_size=300) | values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=120)
def test_any_bytes_are_a_signed_message_or_refused(data: bytes) -> None:
    with pytest.raises(MessageRefused):
        verify(KEY, data, kind="command", target="p", now_s=0.0)


@given(cut=st.integers(0, 400), put=st.binary(min_size=1, max_size=3))
@settings(max_examples=100)
def test_a_signed_message_that_was_changed_anywhere_is_refused(cut: int, put: bytes) -> None:
    data, _nonce = sign(KEY, kind="command", target="p", action="open", now_s=0.0, body="{}")
    changed = data[:cut] + put + data[cut + len(put) :]
    if json_or_none(changed) == json_or_none(data):
        return  # white space, or the same bytes
    with pytest.raises(MessageRefused):
        verify(KEY, changed, kind="command", target="p", now_s=0.0)


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@given(message=values)
@settings(max_examples=100)
def test_the_desk_for_orders_survives_any_argument(message: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    receiver = OrderReceiver(
        Settings(dir=str(tmp_path_factory.getbasetemp() / "receiver")),
        ProcessRecord(uid="p", host="here", pid=1, started_at_s=0.0),
        SystemClock(),
        None,
    )
    assert receiver.receive(message) == ""
    assert receiver.counters["control:refused"] == 1


@given(body=st.binary(max_size=200) | st.binary(max_size=200).map(zlib.compress))
@settings(max_examples=100)
def test_any_body_is_a_batch_or_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptBatch):
        read_lines(inflate(body))


@given(value=values, record=st.sampled_from(["failure", "rollup", "process", "stats", "window", "audit"]))
@settings(max_examples=120)
def test_a_record_with_any_field_is_read_or_refused_by_itself(value: Any, record: str) -> None:
    good = zlib.decompress(pack_batch([Stats(process="p", seq=1, at_s=1.0)]))
    strange = json.dumps({"record": record, "process": value, "at_s": value, "counters": value, "id": value}).encode()
    records, wrong = read_lines(good + b"\n" + strange)
    assert len(records) + len(wrong) == 2
    assert isinstance(records[0], Stats)


@pytest.mark.parametrize("number", [b"9" * 100_000, b"1e999999999", b"-" + b"9" * 20_000, b"0." + b"9" * 100_000])
def test_a_number_of_any_length_in_a_record_costs_nothing(number: bytes) -> None:
    begun_s = SystemClock().monotonic_s()
    good = zlib.decompress(pack_batch([Stats(process="p", seq=1, at_s=1.0)]))
    lines = [good] + [b'{"record":"stats","process":"p","seq":%s,"at_s":%s}' % (number, number)] * 20
    records, _wrong = read_lines(b"\n".join(lines))
    assert records
    assert SystemClock().monotonic_s() - begun_s < 1.0


def test_a_message_over_the_limit_is_not_inflated_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_trace.transports.broker.MOST_MESSAGE_BYTES", 100)
    with pytest.raises(CorruptBatch, match="more than 100 bytes"):
        inflate(b"\x78" * 101)
    monkeypatch.setattr(intake, "MOST_MESSAGE_BYTES", 100)
    body, refused = read_item(b'{"body": "' + b"x" * 100_000 + b'"}')
    assert (body, refused is not None and refused.why) == (b"", "too_big")


def test_log_lines_about_what_is_set_aside_come_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    from celery_trace.transports.broker import BrokerConsumer

    clock = FakeClock()
    consumer = BrokerConsumer(None, SimpleNamespace(store=None), Settings(), clock=clock)
    for _ in range(5):
        consumer._log_aside("Records were set aside in %s: %s.", "q", "why")
    clock.advance(60.0)
    consumer._log_aside("Records were set aside in %s: %s.", "q", "why")
    assert caplog.messages == ["celery-trace: Records were set aside in q: why."] * 2
