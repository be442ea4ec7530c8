"""What `--state` may say, and that a password in it is shown to nobody."""

from __future__ import annotations

import pytest

from serve_asgi.config.options import Config
from serve_asgi.config.sources import read, written
from serve_asgi.config.state_location import (
    PostgresAddress,
    RedisAddress,
    is_url,
    redis_address,
    shown,
    store_address,
)
from serve_asgi.errors import UsageError


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("state.db", "state.db"),
        ("/var/lib/shop@home/state.db", "/var/lib/shop@home/state.db"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hunter2@localhost", "redis://***@localhost"),
        ("rediss://shop:hunter2@redis.example:6380/1", "rediss://***@redis.example:6380/1"),
        ("redis://:hun/ter@2@localhost", "redis://***@localhost"),
        ("redis://a:hunter2@one,two:6379", "redis://***@one,two:6379"),
        ("unix://shop:hunter2@/run/redis.sock?db=1", "unix://***@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock?password=hunter2&db=1", "unix:///run/redis.sock?password=***&db=1"),
        ("redis://localhost?username=shop&ssl_password=hunter2#x", "redis://localhost?username=***&ssl_password=***#x"),
        ("REDIS://:hunter2@localhost", "REDIS://***@localhost"),
        ("redis+sentinel://:hunter2@a/m?sentinel_password=hunter2", "redis+sentinel://***@a/m?sentinel_password=***"),
        ("postgresql://shop:hunter2@a:1,b/db?sslmode=require", "postgresql://***@a:1,b/db?sslmode=require"),
        ("postgresql:///db?user=shop&password=hunter2", "postgresql:///db?user=***&password=***"),
    ],
)
def test_no_password_is_shown(state: str, expected: str) -> None:
    assert shown(state) == expected


def test_the_configuration_does_not_show_it() -> None:
    settings = read("app:asgi", {"state": "redis://:hunter2@localhost:6379/0"}, {})
    assert "hunter2" not in str(settings.told())
    assert "hunter2" not in written(settings.config, "state")
    other = read("app:asgi", {"state": "redis://:hunter3@localhost:6379/0"}, {})
    assert "hunter" not in settings.not_live(other)
    assert settings.config.state == "redis://:hunter2@localhost:6379/0"


@pytest.mark.parametrize(
    ("state", "urls", "prefix", "replicas", "timeout"),
    [
        ("redis://h:1/0", ("redis://h:1/0",), "serve", 0, 3.0),
        ("redis://u:p@a:1,b:2/3?db=3", ("redis://u:p@a:1/3?db=3", "redis://u:p@b:2/3?db=3"), "serve", 0, 3.0),
        ("unix:///s?prefix=shop&replicas=2&timeout=0.5", ("unix:///s",), "shop", 2, 0.5),
        ("valkey://h:1/0", ("redis://h:1/0",), "serve", 0, 3.0),
        ("valkeys://h", ("rediss://h",), "serve", 0, 3.0),
        ("rediss://h?ssl_ca_certs=/ca.pem&prefix=a:b", ("rediss://h?ssl_ca_certs=%2Fca.pem",), "a:b", 0, 3.0),
    ],
)
def test_urls_are_taken_apart(state: str, urls: tuple[str, ...], prefix: str, replicas: int, timeout: float) -> None:
    found = redis_address(state)
    assert (found.urls, found.prefix, found.replicas, found.timeout) == (urls, prefix, replicas, timeout)


@pytest.mark.parametrize(
    ("state", "sentinels", "master"),
    [
        (
            "redis+sentinel://a:1,b/shop",
            ("redis://a:1", "redis://b:26379"),
            "redis://HOST:PORT/",
        ),
        (
            "valkeys+sentinel://u:p@a/shop/2?ssl_ca_certs=/ca.pem&sentinel_password=q",
            ("rediss://a:26379?ssl_ca_certs=%2Fca.pem&password=q",),
            "rediss://u:p@HOST:PORT/2?ssl_ca_certs=%2Fca.pem",
        ),
    ],
)
def test_sentinels_are_told_apart_from_their_master(state: str, sentinels: tuple[str, ...], master: str) -> None:
    found = redis_address(state)
    assert (found.urls, found.service, found.master) == (sentinels, "shop", master)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("mysql://:hunter2@h/db", "names no known store"),
        ("redis://:hunter2@h?replicas=many", "replicas is a number"),
        ("redis://:hunter2@h?replicas=-1", "replicas is a number of replicas"),
        ("redis://:hunter2@h?timeout=0", "timeout and start are at least 0.1"),
        ("redis://:hunter2@h?prefix=", "a prefix has"),
        ("redis://:hunter2@h?prefix=two words", "a prefix has"),
        ("redis://:hunter2@h?prefix", "is not a URL"),
        ("redis://:hunter2@[h", "is not a URL"),
        ("unix://:hunter2@", "write unix:///PATH"),
        ("redis://:hunter2@h?timeout=nan", "timeout is a number"),
        ("redis://:hunter2@h?lease=0.5", "lease is at least 1 "),
        ("redis://:hunter2@h?start=inf", "start is a number"),
        ("redis://:hunter2@h?replicas=1.5", "replicas is a number of replicas"),
        ("redis://:hunter2@h:x", "a host is a name or an address, perhaps with a port from 1 to 65535"),
        ("redis://:hunter2@h:70000/0", "a host is a name"),
        ("redis://:hunter2@h,", "several have a comma between them"),
        ("redis://:hunter2@:0", "a host is a name"),
        ("redis://:hunter2@h/x", "the number of a database, as in /0"),
        ("redis://:hunter2@h/-1", "the number of a database, as in /0"),
        ("redis+sentinel://:hunter2@h", "after the Sentinels comes the name of the master"),
        ("redis+sentinel://:hunter2@h/", "after the Sentinels comes the name of the master"),
        ("redis+sentinel://:hunter2@h/shop/x", "the number of a database, as in /0"),
        ("redis://:hunter2@h?db=x", "db is the number of a database"),
        ("postgresql://:hunter2@h/db?prefix=", "a prefix names the schema, and has 1 to 50"),
        (f"postgresql://:hunter2@h/db?prefix={'x' * 51}", "a prefix names the schema"),
        ("postgresql://:hunter2@h/db?replicas=1", "replicas is for Redis; a PostgreSQL waits for its standbys as"),
        ("postgresql://:hunter2@h/db?timeout=0", "timeout and start are at least 0.1"),
        ("postgresql://:hunter2@h/db?timeout=x", "timeout is a number"),
        ("postgresql://:hunter2@h/db?lease=x", "lease is a number"),
        ("postgresql://:hunter2@h/db?prefix", "write postgresql://HOST:PORT/DATABASE"),
    ],
)
def test_what_cannot_be_is_a_sentence_without_the_password(state: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        store_address(state)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(UsageError, match=says):
        read("app:asgi", {"state": state}, {})


@pytest.mark.parametrize(
    ("state", "url", "schema", "timeout", "start"),
    [
        ("postgresql://u:p@h:1/db", "postgresql://u:p@h:1/db", "serve", 3.0, 15.0),
        ("postgres://a,b/db?prefix=shop&timeout=1", "postgres://a,b/db", "shop", 1.0, 15.0),
        (
            "postgresql:///db?host=/run/pg&start=2&sslmode=verify-full&sslrootcert=%2Fca.pem",
            "postgresql:///db?host=/run/pg&sslmode=verify-full&sslrootcert=%2Fca.pem",
            "serve",
            3.0,
            2.0,
        ),
    ],
)
def test_what_is_not_ours_goes_to_libpq(state: str, url: str, schema: str, timeout: float, start: float) -> None:
    found = store_address(state)
    assert isinstance(found, PostgresAddress)
    assert (found.url, found.schema, found.timeout, found.start) == (url, schema, timeout, start)


def test_a_path_is_no_url() -> None:
    assert not is_url("state.db")
    assert not is_url("/srv/a:b//state.db")
    assert Config().state == ""


@pytest.mark.parametrize(
    "url", ["redis://h/0?lease=7", "redis+sentinel://h/shop?lease=7", "postgresql://h/db?lease=7&sslmode=require"]
)
def test_how_long_a_silent_server_keeps_its_work(url: str) -> None:
    address = store_address(url)
    assert address.lease == 7
    assert "lease" not in (address.urls[0] + address.master if isinstance(address, RedisAddress) else address.url)
