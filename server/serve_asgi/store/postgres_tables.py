"""The tables in a PostgreSQL, and the statements; all in one schema, whose name is the prefix of `--state`.

    about     one row: format, epoch (names this life of the data), seq (version of the last change), used (size of all
              entries), token, sent (number of the last message), and the bytes that ever went to both logs.
              Whoever changes anything locks this row first, so that versions become visible in their order
    entries   the state: key, version, value
    changes   the latest changes, by version; `ends`: the bytes up to the end of it
    messages  the latest messages, by number
    ticks     the last grant of each schedule
    leases    until when (unix time by the database's clock) the run with a token has its lease

and those of `serve_asgi.store.postgres_work_tables`. Names and keys are bytea, since a text of PostgreSQL holds no NUL.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 1
CHANGE_BYTES: Final = 16 * 1024 * 1024
MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Most bytes that are kept of both: a server that lags further behind reads the whole state anew, and misses
messages."""
TRIM_STEP: Final = 1024 * 1024
"""Bytes after which the oldest are deleted again."""
ROW_BYTES: Final = 64
"""What a row counts as besides its values."""
LONGEST_PREFIX: Final = 50
"""Bytes of a schema's name that leave room for the channel's (63, NAMEDATALEN)."""

MAKE: Final = (
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.about (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        format integer NOT NULL, epoch text NOT NULL, seq bigint NOT NULL DEFAULT 0, used bigint NOT NULL DEFAULT 0,
        token bigint NOT NULL DEFAULT 0, sent bigint NOT NULL DEFAULT 0,
        change_bytes bigint NOT NULL DEFAULT 0, message_bytes bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 20)
    """,  # a row that is updated all the time: new versions of it fit beside it
    "CREATE TABLE IF NOT EXISTS SCHEMA.entries (key bytea PRIMARY KEY, version bigint NOT NULL, value bytea NOT NULL)",
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.changes (
        version bigint PRIMARY KEY, origin text NOT NULL, key bytea NOT NULL, value bytea, ends bigint NOT NULL)
    """,
    "CREATE INDEX IF NOT EXISTS changes_ends ON SCHEMA.changes (ends)",
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.messages (
        number bigint PRIMARY KEY, epoch text NOT NULL, origin text NOT NULL, head bytea NOT NULL, body bytea NOT NULL,
        ends bigint NOT NULL)
    """,
    "CREATE INDEX IF NOT EXISTS messages_ends ON SCHEMA.messages (ends)",
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.ticks (
        name bytea PRIMARY KEY, tick double precision NOT NULL, holder text NOT NULL, token bigint NOT NULL)
    """,
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.leases (
        name bytea, token bigint, until double precision NOT NULL, PRIMARY KEY (name, token))
    """,
)
BEGIN_LIFE: Final = "INSERT INTO SCHEMA.about (format, epoch) VALUES (%s, %s) ON CONFLICT DO NOTHING"

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
LIMITS: Final = """
    SELECT set_config('lock_timeout', %(lock)s, true), set_config('statement_timeout', %(statement)s, true),
        set_config('idle_in_transaction_session_timeout', %(idle)s, true),
        set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)
"""
"""For this transaction: a server that stops in the middle of one holds up the others for so long (ms)."""
LOCK_SCHEMA: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
ABOUT: Final = "SELECT format, epoch, seq, used, token, sent, change_bytes, message_bytes FROM SCHEMA.about"
LOCK: Final = f"{ABOUT} FOR UPDATE"
CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::double precision"
ENTRIES: Final = "SELECT key, version, value FROM SCHEMA.entries"
CHANGES: Final = "SELECT version, key, value FROM SCHEMA.changes WHERE version > %s ORDER BY version"
MESSAGES: Final = (
    "SELECT number, epoch, origin, head, body FROM SCHEMA.messages WHERE number > %s ORDER BY number LIMIT %s"
)
TICKS: Final = "SELECT name, tick, holder, token FROM SCHEMA.ticks WHERE name = ANY(%s::bytea[])"
LEASES: Final = "SELECT name, token, until FROM SCHEMA.leases WHERE name = ANY(%s::bytea[])"

BEGIN_ANEW: Final = (
    "DELETE FROM SCHEMA.changes",
    "DELETE FROM SCHEMA.messages",
)
SET_LIFE: Final = "UPDATE SCHEMA.about SET epoch = %s, seq = %s, used = %s"
SET_SEQ: Final = "UPDATE SCHEMA.about SET seq = %s"
DELETE: Final = "DELETE FROM SCHEMA.entries WHERE key = ANY(%s::bytea[])"
PUT: Final = """
    INSERT INTO SCHEMA.entries SELECT * FROM unnest(%s::bytea[], %s::bigint[], %s::bytea[])
    ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value
"""
LOG: Final = """
    INSERT INTO SCHEMA.changes (origin, version, key, value, ends)
    SELECT %s, * FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::bigint[])
"""
SEND: Final = """
    INSERT INTO SCHEMA.messages (epoch, origin, number, head, body, ends)
    SELECT %s, %s, * FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::bigint[])
"""
TRIM_CHANGES: Final = "DELETE FROM SCHEMA.changes WHERE ends <= %s"
TRIM_MESSAGES: Final = "DELETE FROM SCHEMA.messages WHERE ends <= %s"
GRANT: Final = """
    INSERT INTO SCHEMA.ticks SELECT * FROM unnest(%s::bytea[], %s::double precision[], %s::text[], %s::bigint[])
    ON CONFLICT (name) DO UPDATE SET tick = excluded.tick, holder = excluded.holder, token = excluded.token
"""
FORGET_LEASES: Final = "DELETE FROM SCHEMA.leases WHERE name = ANY(%s::bytea[])"
LEASE: Final = "INSERT INTO SCHEMA.leases SELECT * FROM unnest(%s::bytea[], %s::bigint[], %s::double precision[])"
SET_ABOUT: Final = (
    "UPDATE SCHEMA.about SET seq = %s, used = %s, token = %s, sent = %s, change_bytes = %s, message_bytes = %s"
)
TOUCH: Final = "UPDATE SCHEMA.about SET seq = seq"
NOTIFY: Final = "SELECT pg_notify(%s, '')"
EXISTS: Final = "SELECT to_regnamespace(%s) IS NOT NULL, to_regclass(%s) IS NOT NULL"


def in_schema(statement: str, schema: str) -> bytes:
    """A statement for the tables of a schema, whose name has no quotation mark."""
    return statement.replace("SCHEMA.", f'"{schema}".').encode()


def channel(schema: str) -> str:
    """The channel of NOTIFY on which servers wake each other."""
    return f"serve:{schema}"
