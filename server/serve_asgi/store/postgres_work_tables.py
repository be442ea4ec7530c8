"""The tables for work of the fleet in a PostgreSQL, and their statements (see `serve_asgi.store.postgres_tables`).

work_topics  the topics to which work was ever sent
work         what waits or is being handled: number, topic, server that has sent it and its key there, message id,
             ack (`AckMode`), most (deliveries), origin, body, tries (deliveries so far), and if a server has taken
             it: taken_by, and until when (unix time by the database's clock) it belongs to that server
handlers     until when a server handles a topic
outcomes     what has become of work, for the server that has sent it
"""

from __future__ import annotations

from typing import Final

from serve_asgi.ipc.work_frames import QUEUED

FOLLOWED: Final = 64
"""Most outcomes that are read at a time."""
OUTCOMES_TIME: Final = 3_600
"""Seconds for which outcomes are kept for a server that reads none."""

MAKE: Final = (
    "CREATE TABLE IF NOT EXISTS SCHEMA.work_topics (topic bytea PRIMARY KEY)",
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.work (
        number bigserial PRIMARY KEY, topic bytea NOT NULL, server text NOT NULL, key text NOT NULL,
        message text NOT NULL, ack smallint NOT NULL, most integer NOT NULL, origin bytea NOT NULL,
        body bytea NOT NULL, tries integer NOT NULL DEFAULT 0, taken_by text, until double precision)
    """,
    "CREATE INDEX IF NOT EXISTS work_topic ON SCHEMA.work (topic, number)",
    "CREATE INDEX IF NOT EXISTS work_waiting ON SCHEMA.work (topic, number) WHERE taken_by IS NULL",
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.handlers (
        topic bytea, server text, until double precision NOT NULL, PRIMARY KEY (topic, server))
    """,
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.outcomes (
        number bigserial PRIMARY KEY, server text NOT NULL, key text NOT NULL, outcome text NOT NULL,
        value bytea NOT NULL, made double precision NOT NULL)
    """,
    "CREATE INDEX IF NOT EXISTS outcomes_server ON SCHEMA.outcomes (server, number)",
)
_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"

TOPICS: Final = "SELECT topic FROM SCHEMA.work_topics WHERE NOT topic = ANY(%s::bytea[]) ORDER BY topic"
OUTCOMES: Final = (
    f"SELECT number, key, outcome, value FROM SCHEMA.outcomes WHERE server = %s ORDER BY number LIMIT {FOLLOWED}"
)
FORGET_OUTCOMES: Final = "DELETE FROM SCHEMA.outcomes WHERE number = ANY(%s::bigint[])"
FORGET_OLD_OUTCOMES: Final = f"DELETE FROM SCHEMA.outcomes WHERE made < {_NOW} - {OUTCOMES_TIME}"

WAITING: Final = f"""
    SELECT (SELECT count(*) FROM SCHEMA.handlers WHERE topic = %(topic)s AND until > {_NOW}), count(*), sum(size)
    FROM (SELECT octet_length(body) AS size FROM SCHEMA.work WHERE topic = %(topic)s LIMIT {QUEUED}) AS waiting
"""
NAME_TOPIC: Final = "INSERT INTO SCHEMA.work_topics (topic) VALUES (%s) ON CONFLICT DO NOTHING"
POST: Final = """
    INSERT INTO SCHEMA.work (topic, server, key, message, ack, most, origin, body)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING number
"""
WITHDRAW: Final = "DELETE FROM SCHEMA.work WHERE number = %s AND taken_by IS NULL RETURNING number"
FINISH: Final = f"""
    WITH finished AS (DELETE FROM SCHEMA.work WHERE number = %s AND taken_by = %s RETURNING server, key, ack)
    INSERT INTO SCHEMA.outcomes (server, key, outcome, value, made)
    SELECT server, key, %s, %s, {_NOW} FROM finished WHERE ack > 0 RETURNING number
"""
FORGET: Final = "DELETE FROM SCHEMA.work WHERE number = %s AND taken_by = %s RETURNING number"
PUT_BACK: Final = """
    UPDATE SCHEMA.work SET taken_by = NULL, until = NULL, tries = %s WHERE number = %s AND taken_by = %s
    RETURNING number
"""

TAKE: Final = f"""
    UPDATE SCHEMA.work SET taken_by = %(server)s, until = {_NOW} + %(lease)s, tries = tries + 1
    FROM (
        SELECT free.number FROM unnest(%(topics)s::bytea[], %(counts)s::bigint[]) AS wanted(topic, count),
        LATERAL (
            SELECT number FROM SCHEMA.work WHERE topic = wanted.topic AND taken_by IS NULL
            ORDER BY number LIMIT wanted.count FOR UPDATE SKIP LOCKED
        ) AS free
    ) AS taken
    WHERE work.number = taken.number
    RETURNING work.number, topic, message, tries, ack, most, origin, body
"""
HOLD: Final = f"""
    UPDATE SCHEMA.work SET until = {_NOW} + %s WHERE taken_by = %s AND number = ANY(%s::bigint[])
"""
HANDLE: Final = f"""
    INSERT INTO SCHEMA.handlers SELECT topic, %s, {_NOW} + %s FROM unnest(%s::bytea[]) AS handled(topic)
    ON CONFLICT (topic, server) DO UPDATE SET until = excluded.until
"""
HANDLE_NO_MORE: Final = (
    f"DELETE FROM SCHEMA.handlers WHERE server = %s AND topic = ANY(%s::bytea[]) OR until < {_NOW} - 60"
)
PUT_BACK_LOST: Final = f"""
    UPDATE SCHEMA.work SET taken_by = NULL, until = NULL
    WHERE number IN (
        SELECT number FROM SCHEMA.work WHERE taken_by IS NOT NULL AND until < {_NOW} AND topic = ANY(%s::bytea[])
        FOR UPDATE SKIP LOCKED
    ) RETURNING number
"""
"""What servers had taken that have not been heard of in time."""
