"""How many answers had a status: asked with SQL of ClickHouse, or, by an embedded DuckDB, of the access log's file."""

from __future__ import annotations

import asyncio
import glob
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx

CLICKHOUSE_URL: Final = os.environ.get("ALARM_CLICKHOUSE_URL", "")
"""Address of its HTTP interface; a user and a password may be in it: http://user:password@host:8123"""
TABLE: Final = os.environ.get("ALARM_TABLE", "access_log")
ACCESS_LOG: Final = os.environ.get("ALARM_ACCESS_LOG", "access.log")
"""For DuckDB: the file that --access-log-file names, as JSON lines; what logrotate made of it is read as well."""
TIMEOUT: Final = 30.0
"""Seconds that ClickHouse may take."""

FROM_CLICKHOUSE: Final = """
SELECT count(*) AS found
FROM {table:Identifier}
WHERE status = {status:UInt16} AND time >= {since:DateTime64(3, 'UTC')}
FORMAT JSONEachRow
"""
FROM_FILE: Final = """
SELECT count(*) AS found
FROM read_json($files, format = 'nd', columns = {time: 'TIMESTAMP', status: 'USMALLINT'}, ignore_errors = true)
WHERE status = $status AND time >= $since
"""


async def count(status: int, since: datetime) -> int:
    """Answers with `status` since then. Raises httpx.HTTPError, duckdb.Error, OSError: the run that asked fails."""
    if CLICKHOUSE_URL:
        return await _from_clickhouse(status, since)
    return await asyncio.to_thread(_from_file, status, since)


async def _from_clickhouse(status: int, since: datetime) -> int:
    """Values travel beside the SQL, not within it (ClickHouse, "HTTP Interface", queries with parameters)."""
    values = {"table": TABLE, "status": str(status), "since": f"{since.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]}
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        answer = await client.post(
            CLICKHOUSE_URL,
            params={f"param_{name}": value for name, value in values.items()},
            content=FROM_CLICKHOUSE,
        )
        answer.raise_for_status()
        return int(answer.json()["found"])


def _from_file(status: int, since: datetime) -> int:
    """In a thread, for it reads a file."""
    import duckdb  # here: whoever has ClickHouse needs no second engine

    values = {"files": _files(since), "status": status, "since": since.astimezone(UTC).replace(tzinfo=None)}
    with duckdb.connect() as engine:
        row = engine.execute(FROM_FILE, values).fetchone()
    assert row is not None
    return int(row[0])


def _files(since: datetime) -> list[str]:
    """The log, and what was rotated away from it and written to since then.

    The log itself is always among them: if it is not there, that is an error of the run and not a count of 0.
    """
    log = Path(ACCESS_LOG)
    rotated = (file for file in log.parent.glob(f"{glob.escape(log.name)}[.-]*") if file.is_file())
    return [str(log), *(str(file) for file in rotated if file.stat().st_mtime >= since.timestamp())]
