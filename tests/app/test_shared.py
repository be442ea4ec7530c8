"""What an application sees of the shared state, in local mode: the same cores, within one process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from serve_asgi import shared
from serve_asgi.app.state_watches import Change


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_it_reads_its_own_writes() -> None:
    async def main() -> None:
        assert shared.get("k") is None
        assert shared.get("k", 1) == 1
        assert shared.version("k") == 0
        version = await shared.set("k", {"a": [1, None, True, 2.5, "ä", b"\0"]})
        assert shared.get("k") == shared["k"] == {"a": [1, None, True, 2.5, "ä", b"\0"]}
        assert shared.version("k") == version
        assert await shared.get_authoritative("k", timeout=float("inf")) == shared["k"]
        assert await shared.get_authoritative("none", "default") == "default"
        assert await shared.delete("k")
        assert not await shared.delete("k")
        assert shared.get("k") is None
        with pytest.raises(KeyError):
            shared["k"]

    run(main())


def test_it_is_a_mapping() -> None:
    async def main() -> None:
        await shared.set("a", 1)
        await shared.set("b", (2, 3))
        assert "a" in shared
        assert "c" not in shared
        assert len(shared) == 2
        assert sorted(shared) == sorted(shared.keys()) == ["a", "b"]
        assert dict(shared) == dict(shared.items()) == {"a": 1, "b": [2, 3]}  # tuples arrive as lists
        for key in shared:
            await shared.delete(key)
        assert list(shared.values()) == []

    run(main())


def test_what_is_given_out_is_nobody_elses() -> None:
    async def main() -> None:
        mine = {"names": ["a"]}
        await shared.set("k", mine)
        mine["names"].append("b")
        shared["k"]["names"].append("c")
        assert shared["k"] == {"names": ["a"]}

    run(main())


def test_incr() -> None:
    async def main() -> None:
        assert await shared.incr("n") == 1
        assert await shared.incr("n", -5) == -4
        assert sorted(await asyncio.gather(*(shared.incr("many") for _ in range(1000)))) == list(range(1, 1001))
        await shared.set("text", "x")
        with pytest.raises(shared.NotAnInteger):
            await shared.incr("text")
        with pytest.raises(TypeError):
            await shared.incr("n", 1.5)  # type: ignore[arg-type]
        await shared.set("n", 2**63 - 1)
        with pytest.raises(OverflowError):
            await shared.incr("n")
        assert shared["n"] == 2**63 - 1

    run(main())


def test_compare_and_set() -> None:
    async def main() -> None:
        first = await shared.set("k", "a", version=0)
        with pytest.raises(shared.Conflict) as conflict:
            await shared.set("k", "b", version=0)
        assert (conflict.value.version, conflict.value.value) == (first, "a")
        second = await shared.set("k", "b", version=first)
        with pytest.raises(shared.Conflict):
            await shared.delete("k", version=first)
        assert await shared.delete("k", version=second)
        await shared.set("k", "c")
        with pytest.raises(shared.Conflict):  # made again, it is not what it was
            await shared.set("k", "d", version=second)

    run(main())


def test_update() -> None:
    async def append(names: list[str]) -> list[str]:
        await asyncio.sleep(0)
        names.append("x")
        return names

    async def main() -> None:
        assert await shared.update("names", append, default=[]) == ["x"]
        assert await shared.update("names", append) == ["x", "x"]
        await asyncio.gather(*(shared.update("n", lambda n: n + 1, 0) for _ in range(300)))
        assert shared["n"] == 300
        calls = []

        async def disturbed(value: int) -> int:
            calls.append(value)
            if len(calls) < 3:
                await shared.incr("n")
            return value * 2

        assert await shared.update("n", disturbed) == 604
        assert calls == [300, 301, 302]
        with pytest.raises(ZeroDivisionError):
            await shared.update("n", lambda n: n // 0)
        assert shared["n"] == 604

    run(main())


def test_an_update_that_never_gets_its_turn() -> None:
    async def main() -> None:
        async def disturbed(value: int) -> int:
            await shared.incr("n")
            return value

        with pytest.raises(shared.Conflict):
            await shared.update("n", disturbed, 0, timeout=0.05)
        never = asyncio.Event()

        async def slow(value: int) -> int:
            await never.wait()
            return value

        hanging = asyncio.ensure_future(shared.update("n", slow))
        await asyncio.sleep(0)
        with pytest.raises(shared.Conflict, match="other updates"):
            await shared.update("n", lambda n: n, timeout=0.01)
        hanging.cancel()
        assert await asyncio.gather(hanging, return_exceptions=True)
        assert await shared.update("n", lambda n: -1) == -1

    run(main())


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, 2**70, 1j, {(1, 2): 3}, "\ud800"])
def test_what_cannot_travel_is_an_error_at_the_writer(value: object) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="'k'"):
            await shared.set("k", value)
        assert "k" not in shared

    run(main())


def test_sizes() -> None:
    async def main() -> None:
        await shared.set("k", b"v" * (64 * 1024 - 8))
        with pytest.raises(shared.TooLarge, match="--state-value-limit"):
            await shared.set("k", b"v" * 64 * 1024)
        with pytest.raises(ValueError, match="--state-value-limit"):
            await shared.update("k", lambda v: v * 2)
        values = (shared.set(f"k{number}", b"v" * 64_000) for number in range(300))
        found = await asyncio.gather(*values, return_exceptions=True)
        refused = [error for error in found if not isinstance(error, int)]
        assert all(isinstance(error, shared.TooLarge) and "--state-limit" in str(error) for error in refused)
        assert 250 < len(shared) < 270
        await shared.delete("k0")
        await shared.set("k0", b"v" * 60_000)
        for key in ("", "k" * 513, "ä" * 257, "k" * 100_000, "serve:mine", "\ud800"):
            with pytest.raises(shared.BadKey):
                await shared.set(key, 1)
            with pytest.raises(shared.BadKey):
                await shared.get_authoritative(key)
        with pytest.raises(shared.NotAnInteger):
            await shared.set("k", 1, version=1.0)  # type: ignore[arg-type]
        with pytest.raises(shared.OutOfRange):
            await shared.incr("n", 2**63)
        with pytest.raises(TypeError):
            await shared.set(3, 1)  # type: ignore[arg-type]

    run(main())


def test_watching() -> None:
    async def main() -> None:
        watch, everything = shared.watch("k"), shared.watch()
        seen: list[tuple[Any, bool]] = []

        async def look() -> None:
            async for change in shared.watch("k"):
                assert isinstance(change, Change)
                seen.append((change.value, change.deleted))

        looking = asyncio.ensure_future(look())
        await asyncio.sleep(0)
        await shared.set("k", [1])
        await shared.set("other", 2)
        await shared.delete("k")
        await asyncio.sleep(0)
        assert seen == [([1], False), (None, True)]
        assert (await anext(watch)).deleted  # the newest, for who has not asked before
        assert [(await anext(everything)).key for _ in range(2)] == ["other", "k"]
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting
        looking.cancel()
        assert await asyncio.gather(looking, return_exceptions=True)

    run(main())


def test_several_readers_of_one_watch_share_its_changes() -> None:
    async def main() -> None:
        watch = shared.watch()
        readers = [asyncio.ensure_future(anext(watch)) for _ in range(3)]
        await asyncio.sleep(0)
        await shared.set("a", 1)
        await shared.set("b", 2)
        done, _ = await asyncio.wait(readers[:2])
        assert sorted(reader.result().key for reader in done) == ["a", "b"]
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await readers[2]

    run(main())


def test_keys_that_were_watched_are_forgotten() -> None:
    async def main() -> None:
        kept = [shared.watch(f"kept{number}") for number in range(50)]
        for number in range(1000):
            shared.watch(f"key{number}")
        assert len(shared._watches) < 300
        await shared.set("kept49", 1)
        assert (await anext(kept[49])).value == 1

    run(main())


def test_each_event_loop_has_a_state_of_its_own() -> None:
    async def main() -> None:
        assert len(shared) == 0
        await shared.ready()
        watch = shared.watch("k")
        await shared.set("k", 1)
        assert (await anext(watch)).value == 1

    run(main())
    run(main())
    assert shared.get("k") == 1  # outside of any loop: what was there last


def test_another_threads_loop_is_served_and_threads_may_read() -> None:
    async def main() -> None:
        await shared.set("k", 1)

        def read_and_write() -> int:
            asyncio.run(shared.set("l", 2))
            asyncio.run(shared.update("l", lambda value: value + shared["k"]))
            return int(shared["l"])

        assert await asyncio.to_thread(shared.get, "k") == 1
        assert await asyncio.to_thread(read_and_write) == 3
        assert dict(shared) == {"k": 1, "l": 3}

    run(main())


def test_a_listener_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        from serve_asgi.app.hub_link import current

        await shared.set("k", 1)
        watch = shared.watch()
        link = current()
        monkeypatch.setattr(link, "_transmit", lambda data: None)
        waiting = asyncio.ensure_future(shared.set("k", 2))
        await asyncio.sleep(0)
        link.close()
        with pytest.raises(shared.LinkClosed):
            await waiting
        with pytest.raises(shared.LinkClosed):
            await shared.set("k", 2)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(shared.watch())
        assert shared.get("k") == 1  # what was known may still be read

    run(main())


def test_a_listener_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        from serve_asgi.app import state_requests
        from serve_asgi.app.hub_link import current

        monkeypatch.setattr(state_requests, "GRACE", 0.0)
        monkeypatch.setattr(current(), "_transmit", lambda data: None)
        with pytest.raises(shared.Unknown):
            await shared.set("k", 2, timeout=0.01)
        monkeypatch.setattr(shared._requests, "_window", asyncio.Semaphore(0))
        with pytest.raises(shared.NotWritten):
            await shared.set("k", 2, timeout=0.01)

    run(main())
