"""The servers that the services tier stands on: each answers before anything is tested against it."""

import kombu
import pytest
import sqlalchemy


@pytest.mark.parametrize("fixture", ["redis_url", "rabbitmq_url"])
def test_a_broker_hands_on_a_message(fixture, request):
    url = request.getfixturevalue(fixture)
    with kombu.Connection(url, connect_timeout=10) as connection:
        connection.ensure_connection(max_retries=5, timeout=30)
        queue = connection.SimpleQueue("services-start")
        try:
            queue.put({"greeting": "hello"})
            message = queue.get(timeout=10)
            assert message.payload == {"greeting": "hello"}
            message.ack()
        finally:
            queue.close()


@pytest.mark.parametrize(("fixture", "dialect"), [("postgres_url", "postgresql"), ("mariadb_url", "mysql")])
def test_a_database_keeps_a_row(fixture, dialect, request):
    engine = sqlalchemy.create_engine(request.getfixturevalue(fixture))
    assert engine.dialect.name == dialect
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE greetings (word VARCHAR(20))"))
            connection.execute(sqlalchemy.text("INSERT INTO greetings VALUES ('hello ☃')"))
        with engine.begin() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT word FROM greetings")) == "hello ☃"
            connection.execute(sqlalchemy.text("DROP TABLE greetings"))
    finally:
        engine.dispose()
