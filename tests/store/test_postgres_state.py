"""The state in a PostgreSQL that several servers share, and what becomes of it when that PostgreSQL is lost."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.postgres import Postgres, own_place, own_postgres
from tests.store.stores import StoreProcess, free_port, pair_of, scaled, store

pytestmark = [pytest.mark.once, pytest.mark.needs("postgres", "initdb")]


@pytest.fixture(scope="module")
def victim() -> Iterator[Postgres]:
    """One that is killed and stopped; each test leaves it running."""
    with own_postgres() as server:
        yield server


def _schema(url: str) -> str:
    return url.partition("prefix=")[2].partition("&")[0]


def test_a_killed_server_is_told_and_recovers_by_itself(victim: Postgres) -> None:
    """Nothing that was confirmed is lost, what is unknown is told to be, and no increment is made twice."""
    with pair_of(own_place(victim)) as (a, b):
        confirmed = unknown = 0
        for _ in range(scaled(2)):
            for number in range(40):
                if number == 20:
                    victim.kill()
                frame = a.write("incr", "n", by=1)
                if frame.kind == "store.written":
                    confirmed += 1
                    continue
                assert frame.head["code"] in ("unknown", "unavailable")
                assert "PostgreSQL at postgresql://***@/postgres" in frame.head["text"]
                unknown += frame.head["code"] == "unknown"
            a.wait("store.down"), b.wait("store.down")
            victim.start()
            assert confirmed <= a.up()["n"][1] <= confirmed + unknown
            b.up()
            confirmed, unknown = a.read("n"), 0
        a.set("after", 1)
        b.wait("store.change", key="after")


def test_a_connection_that_is_cut_in_a_transaction_leaves_nothing_half_done(shared_postgres: Postgres) -> None:
    """The sessions are ended again and again while writes are under way: each is there as a whole, or not at all."""
    url = own_place(shared_postgres)
    stop = threading.Event()

    def cut() -> None:
        with shared_postgres.client() as client:
            while not stop.wait(0.05):
                client.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                    (f"serve-{process.name[:8]}",),
                )

    with store(url) as process:
        process.up()
        cutter = threading.Thread(target=cut)
        cutter.start()
        confirmed = unknown = refused = 0
        while refused + unknown < 5:
            frame = process.write("incr", "n", by=1)
            confirmed += frame.kind == "store.written"
            unknown += frame.head.get("code") == "unknown"
            refused += frame.head.get("code") == "unavailable"
        stop.set()
        cutter.join()
    with store(url) as process:
        state = process.up()
        assert confirmed <= state.get("n", (0, 0))[1] <= confirmed + unknown
    schema = _schema(url)
    ((seq, version),) = shared_postgres.run(
        f'SELECT seq, (SELECT max(version) FROM "{schema}".changes) FROM "{schema}".about'
    )
    assert seq == (version or 0)


def test_a_server_that_stands_still_is_told_and_recovers_by_itself(victim: Postgres) -> None:
    with store(own_place(victim, "timeout=0.5")) as process:
        process.up()
        process.set("a", 1)
        victim.signal(signal.SIGSTOP)
        refused = process.write("incr", "n", by=1)
        assert (refused.kind, refused.head["code"]) == ("store.refused", "unavailable")  # it was not yet committed
        assert "did not answer in time" in refused.head["text"]
        process.wait("store.down")
        assert process.write("incr", "n", by=1).head["code"] == "unavailable"
        assert process.grant("tick", time.time()).head["why"] == "trouble"
        process.ask("store.send", {"kind": "broadcast"})
        assert process.wait("store.unsent").head["code"] == "unavailable"
        victim.signal(signal.SIGCONT)
        assert process.up().get("n", (0, 0))[1] == 0
        process.set("a", 2)


def test_a_server_that_stops_in_a_transaction_holds_the_others_up_no_longer_than_said(
    shared_postgres: Postgres,
) -> None:
    """It has the lock: the database ends its session, and the others wait for that or are told."""
    url = own_place(shared_postgres, "timeout=1")
    schema = _schema(url)
    with store(url) as process, shared_postgres.client() as other:
        process.up()
        other.execute("BEGIN")
        other.execute("SET LOCAL idle_in_transaction_session_timeout = 300")
        other.execute(f'SELECT 1 FROM "{schema}".about FOR UPDATE'.encode())
        assert process.set("a", 1).head["version"] == 1  # waited for the end of the other's session
    with store(url) as process, shared_postgres.client() as other:
        process.up()
        other.execute("BEGIN")
        other.execute(f'SELECT 1 FROM "{schema}".about FOR UPDATE'.encode())
        refused = process.write("set", "a", 2)
        assert refused.head["code"] == "storage"
        assert "lock timeout" in refused.head["text"]
        assert process.wait("store.refuses").head["text"] == refused.head["text"]
        other.execute("ROLLBACK")
        assert process.wait("store.refuses").head["text"] == ""
        assert process.set("a", 3).head["version"] == 2


def test_a_schema_that_somebody_drops_is_made_again_with_the_state(shared_postgres: Postgres) -> None:
    url = own_place(shared_postgres)
    with pair_of(url) as (a, b):
        version = a.set("kept", {"x": [1, b"2"]}).head["version"]
        b.wait("store.change", key="kept")
        token = a.grant("tick", 1.0).head["token"]
        shared_postgres.run(f'DROP SCHEMA "{_schema(url)}" CASCADE')
        a.wait("store.down"), b.wait("store.down")
        assert a.up() == {"kept": (version, {"x": [1, b"2"]})}
        assert b.up() == {"kept": (version, {"x": [1, b"2"]})}
        assert a.set("new", 1).head["version"] > version
        assert b.grant("tick", 2.0).head["token"] > token
        b.wait("store.change", key="new")


def test_a_database_that_comes_back_with_less_is_reported(shared_postgres: Postgres) -> None:
    """As after a fail-over to an asynchronous standby: no version comes again."""
    url = own_place(shared_postgres)
    schema = _schema(url)
    with store(url) as process:
        process.up()
        process.set("early", 1)
        late = process.set("late", 2).head["version"]
        process.process.send_signal(signal.SIGSTOP)
        shared_postgres.run(f"DELETE FROM \"{schema}\".entries WHERE key = 'late'")
        shared_postgres.run(f'DELETE FROM "{schema}".changes WHERE version = 2')
        shared_postgres.run(f'UPDATE "{schema}".about SET seq = 1')
        shared_postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            f"serve-{process.name[:8]}",
        )
        process.process.send_signal(signal.SIGCONT)
        process.wait("store.down")
        assert process.up() == {"early": (1, 1)}
        lost = process.wait("store.say")
        assert (lost.head["event"], lost.head["about"]["changes"]) == ("store_data_lost", 1)
        assert process.set("new", 3).head["version"] == late + 1


def test_a_lost_notification_costs_time_and_nothing_else(shared_postgres: Postgres) -> None:
    url = own_place(shared_postgres)
    with store(url) as process:
        process.up()
        name = _schema(url)
        with shared_postgres.client() as other:  # a server whose NOTIFY never arrives
            other.execute("BEGIN")
            other.execute(f'UPDATE "{name}".about SET seq = seq + 1'.encode())
            other.execute(f"INSERT INTO \"{name}\".entries VALUES ('k', 1, '\\x01')".encode())
            columns = "(version, origin, key, value, ends)"
            other.execute(f"INSERT INTO \"{name}\".changes {columns} VALUES (1, 'x', 'k', '\\x01', 1)".encode())
            other.execute("COMMIT")
        assert process.wait("store.change", key="k").head["version"] == 1


def test_servers_that_start_together_make_one_set_of_tables(shared_postgres: Postgres) -> None:
    url = own_place(shared_postgres)
    processes = [StoreProcess(url) for _ in range(4)]
    try:
        for process in processes:
            assert process.up() == {}
        assert [each.write("incr", "n", by=1).head["version"] for each in processes] == [1, 2, 3, 4]
    finally:
        for process in processes:
            process.close()


def test_tables_of_somebody_else_are_left_as_they_are(shared_postgres: Postgres) -> None:
    shared_postgres.run('CREATE SCHEMA "taken"')
    shared_postgres.run('CREATE TABLE "taken".about (text text)')
    with store(f"{shared_postgres.url}&prefix=taken") as process:
        assert "is not this server's: choose another schema with ?prefix=NAME" in process.failed()
    assert shared_postgres.run('SELECT * FROM "taken".about') == []
    url = own_place(shared_postgres)
    with store(url) as process:
        process.up()
    shared_postgres.run(f'UPDATE "{_schema(url)}".about SET format = 2')
    with store(url) as process:
        assert "is in format 2, of another version of this server" in process.failed()


def test_a_role_that_may_not_make_tables_is_told_how(shared_postgres: Postgres) -> None:
    shared_postgres.run("CREATE ROLE guest LOGIN")
    with store(own_place(shared_postgres).replace("serve@", "guest@")) as process:
        text = process.wait("store.down").head["text"]
        assert "permission denied for database postgres" in text


def test_a_database_that_takes_no_writes_is_told_until_it_does(shared_postgres: Postgres) -> None:
    """A standby, or one that is being moved: it is not used, and its end is noticed."""
    shared_postgres.run("CREATE ROLE reader LOGIN")
    shared_postgres.run("ALTER ROLE reader SET default_transaction_read_only = on")
    with store(own_place(shared_postgres).replace("serve@", "reader@")) as process:
        assert "read-only" in process.wait("store.down").head["text"]
        shared_postgres.run("GRANT CREATE ON DATABASE postgres TO reader")
        shared_postgres.run("ALTER ROLE reader RESET default_transaction_read_only")
        process.up()
        process.set("a", 1)


def test_a_server_that_is_not_there_is_told_and_the_password_is_not() -> None:
    with store(f"postgresql://serve:hunter2@127.0.0.1:{free_port()}/postgres") as process:
        text = process.wait("store.down").head["text"]
        assert "cannot be reached" in text
        assert "postgresql://***@127.0.0.1" in text
        assert "hunter2" not in text


def test_a_role_that_does_not_exist_is_told_what_the_server_says(shared_postgres: Postgres) -> None:
    with store(own_place(shared_postgres).replace("serve@", "nobody:hunter2@")) as process:
        text = process.wait("store.down").head["text"]
        assert 'role "nobody" does not exist' in text
        assert "hunter2" not in text


def test_a_port_that_answers_no_postgresql_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://serve@127.0.0.1:{silent.getsockname()[1]}/postgres?timeout=0.3"
        with store(url) as process:
            assert "did not answer in time" in process.wait("store.down").head["text"]


def test_an_option_that_libpq_does_not_know_is_a_sentence(shared_postgres: Postgres) -> None:
    with store(f"{shared_postgres.url}&ssl_mode=require") as process:
        text = process.failed()
        assert "ssl_mode" in text
        assert "correct the URL" in text


def test_a_missing_package_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='psycopg')\n")
    (tmp_path / "serve_asgi").symlink_to(Path(__file__).parents[2] / "server" / "serve_asgi")
    with store("postgresql://serve:hunter2@localhost", modules=tmp_path) as process:
        text = process.failed()
    assert "pip install 'serve-asgi[postgres]'" in text
    assert "hunter2" not in text


def test_old_changes_and_messages_are_deleted(shared_postgres: Postgres) -> None:
    """Both logs are bounded, and what was cut is gone from the tables."""
    url = own_place(shared_postgres)
    with store(url) as process:
        process.up()
        for number in range(320):
            process.set("large", f"{number:05}" + "x" * 60_000)
            process.said.clear()
    ((count, size),) = shared_postgres.run(f'SELECT count(*), sum(length(value)) FROM "{_schema(url)}".changes')
    assert size <= 17 * 1024 * 1024
    assert count < 320
