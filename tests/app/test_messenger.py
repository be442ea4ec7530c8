"""The messenger where no server of ours runs the application: a process on its own, as in an application's tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop

from serve_asgi import messenger
from serve_asgi.app.hub_link import Identity, Link
from serve_asgi.app.message_arguments import CONCURRENCY
from serve_asgi.app.message_receiver import Message, MessageIteration, Origin
from serve_asgi.app.message_sender import WINDOW, WINDOW_BYTES, MessageSender, SendWindow
from serve_asgi.ipc.frames import decode, encode
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import AckMode, MessageKind


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Handlers outlive an event loop: take them away again."""
    yield
    for topic in ("t", "other", "serve:dead"):
        messenger.off(topic)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_process_alone_sends_to_itself_in_each_way() -> None:
    async def main() -> None:
        got: list[tuple[str, Any]] = []
        messenger.on("t", lambda message: got.append((message.topic, message.payload)))
        assert await messenger.broadcast("t", 1) == 1
        assert await messenger.send_to_workers("t", 2) == 1
        await messenger.send_to(0, "t", 3)
        await messenger.send_to_agent("t", 4)
        await messenger.send_random("t", 5)  # the alias
        receipt = await messenger.send_to_any("t", 6, ack=True)
        assert (receipt.attempts, receipt.handler) == (1, messenger.me)
        assert sorted(payload for _, payload in got) == [1, 2, 3, 4, 5, 6]
        await messenger.ready()

    asyncio.run(main())


def test_a_process_alone_is_a_fleet_of_one() -> None:
    async def main() -> None:
        with pytest.raises(messenger.NoReceiver, match="no process handles topic 't'"):
            await messenger.send_to_any("t", scope="cluster")
        messenger.on("t", lambda message: None)
        receipt = await messenger.send_to_any("t", 1, ack=True, scope="cluster")
        assert (receipt.attempts, receipt.handler) == (1, messenger.me)
        assert await messenger.send_to_any("t", 2, scope="cluster") is None  # type: ignore[func-returns-value]
        with pytest.raises(ValueError, match='scope is "server" or "cluster", not "fleet"'):
            await messenger.send_to_any("t", scope="fleet")  # type: ignore[call-overload]

    asyncio.run(main())


def test_each_event_loop_has_its_own_and_handlers_stay() -> None:
    got: list[Any] = []

    @messenger.on("t")
    async def handler(message: Message) -> Any:
        got.append(message.payload)
        return message.payload

    for turn in range(3):
        assert asyncio.run(messenger.call("t", turn)) == turn
    assert got == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [None, True, -(2**63), 2**64 - 1, 1.5, "ä", b"\x00\xff", [1, [2, {"a": None}]], {"a": {"b": [1]}, 1: 2}]
)
def test_values_arrive_as_they_are(value: Any) -> None:
    messenger.on("t", lambda message: message.payload)
    assert asyncio.run(messenger.call("t", value)) == value


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (object(), TypeError, "the payload of a message of topic 't' cannot be sent"),
        ({"a": {1, 2}}, TypeError, "use None, bool, int, float, str, bytes, lists and dicts"),
        (2**64, TypeError, "64 bits"),
        ([{(1, 2): 3}], TypeError, "a tuple or a dict as a key"),
        (b"x" * 131_072, ValueError, "131077 bytes, 131072 at most"),
    ],
)
def test_what_cannot_be_sent_raises_at_the_sender(value: Any, error: type[Exception], text: str) -> None:
    messenger.on("t", print)
    with pytest.raises(error, match=text):
        asyncio.run(messenger.broadcast("t", value))


@pytest.mark.parametrize("topic", ["", "x" * 201, "serve:mine", "\ud800"])
def test_topics_that_are_none(topic: str) -> None:
    with pytest.raises(ValueError, match="a topic has 1 to 200 bytes"):
        messenger.on(topic, print)
    with pytest.raises(ValueError, match="a topic has 1 to 200 bytes"):
        asyncio.run(messenger.broadcast(topic))


def test_nobody_handles_it() -> None:
    async def main() -> None:
        assert await messenger.broadcast("t") == 0
        with pytest.raises(messenger.NoReceiver, match="no process handles topic 't'"):
            await messenger.call("t")
        with pytest.raises(messenger.NoReceiver, match="no worker 1"):
            await messenger.send_to(1, "t")

    asyncio.run(main())


def test_a_handler_may_raise_what_has_no_text() -> None:
    class BadText(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def bad(_: Message) -> None:
        raise BadText

    async def main() -> None:
        messenger.on("t", bad)
        assert (await messenger.send_to_any("t", ack=True, timeout=10)).attempts == 1
        with pytest.raises(messenger.CallFailed, match="BadText: <exception str"):
            await messenger.call("t", timeout=10)

    asyncio.run(main())


def test_a_call_that_is_not_answered_in_time_or_not_well() -> None:
    async def main() -> None:
        never = asyncio.Event()
        messenger.on("t", lambda _: never.wait())
        with pytest.raises(messenger.NotHandled):
            await messenger.call("t", timeout=0.05)
        never.set()
        messenger.off("t")
        messenger.on("t", lambda _: object())
        with pytest.raises(messenger.CallFailed, match="its answer cannot be sent"):
            await messenger.call("t")

    asyncio.run(main())


def test_a_handler_whose_inner_task_was_cancelled_has_failed() -> None:
    async def main() -> None:
        async def handler(message: Message) -> None:
            inner = asyncio.ensure_future(asyncio.sleep(10))
            inner.cancel()
            await inner

        messenger.on("t", handler)
        with pytest.raises(messenger.CallFailed, match="CancelledError"):
            await messenger.call("t")
        assert (await messenger.send_to_any("t", ack=True)).attempts == 1

    asyncio.run(main())


def test_failures_are_logged_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def handler(message: Message) -> None:
        raise ValueError("as it must be")

    async def main() -> None:
        messenger.on("t", handler)
        with pytest.raises(messenger.DeadLettered, match="given up after 2 deliveries"):
            await messenger.send_to_any("t", ack="success", max_deliveries=2)

    logger = logging.getLogger("serve.error")
    logger.addHandler(caplog.handler)
    try:
        asyncio.run(main())
    finally:
        logger.removeHandler(caplog.handler)
    told = list(dict.fromkeys(record for record in caplog.records if record.name == "serve.error"))
    assert [record.about["attempt"] for record in told] == [1, 2]  # type: ignore[attr-defined]
    assert all(record.exc_info for record in told)


def test_a_dead_letter_says_what_it_was() -> None:
    async def main() -> None:
        letters: list[Message] = []
        messenger.on_dead_letter(letters.append)

        @messenger.on("t")
        def handler(message: Message) -> None:
            raise ValueError

        with pytest.raises(messenger.DeadLettered):
            await messenger.send_to_any("t", {"a": 1}, ack="success")
        await until(lambda: bool(letters))
        (letter,) = letters
        assert (letter.topic, letter.payload, letter.attempt, letter.sender) == ("t", {"a": 1}, 3, messenger.me)
        assert letter.reason == "its handler raised"

    asyncio.run(main())


def test_once_and_off() -> None:
    async def main() -> None:
        once: list[Any] = []
        always: list[Any] = []
        messenger.once("t", lambda message: once.append(message.payload))
        handler = messenger.on("t", lambda message: always.append(message.payload))
        for number in range(3):
            await messenger.broadcast("t", number)
        await until(lambda: len(always) == 3)
        messenger.off("t", handler)
        assert await messenger.broadcast("t", 3) == 0
        messenger.once("other", lambda message: once.append(message.payload))
        await messenger.broadcast("other", "a")
        await until(lambda: len(once) == 2)
        assert await messenger.broadcast("other", "b") == 0
        assert (once, always) == ([0, "a"], [0, 1, 2])

    asyncio.run(main())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_run_at_a_time_and_begin_in_order(concurrency: int) -> None:
    async def main() -> None:
        running, most, begun = 0, 0, []

        @messenger.on("t", concurrency=concurrency)
        async def handler(message: Message) -> None:
            nonlocal running, most
            begun.append(message.payload)
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001 * (message.payload % 3))
            running -= 1

        await asyncio.gather(*(messenger.send_to_any("t", n, ack=True) for n in range(20)))
        assert most == concurrency
        assert begun == list(range(20))

    asyncio.run(main())


def test_more_messages_than_the_window_go_in_order() -> None:
    async def main() -> None:
        got: list[int] = []
        messenger.on("t", lambda message: got.append(message.payload))
        assert await asyncio.gather(*(messenger.broadcast("t", n) for n in range(3_000))) == [1] * 3_000
        await until(lambda: len(got) == 3_000)
        assert got == list(range(3_000))

    asyncio.run(main())


def test_large_payloads_pass_together() -> None:
    async def main() -> None:
        sizes: list[int] = []
        messenger.on("t", lambda message: sizes.append(len(message.payload)))
        body = b"x" * 131_000
        await asyncio.gather(*(messenger.broadcast("t", body) for _ in range(100)))
        await until(lambda: len(sizes) == 100)
        assert set(sizes) == {131_000}

    asyncio.run(main())


def test_messages_can_be_iterated_over() -> None:
    async def main() -> None:
        got: list[Any] = []

        async def consume() -> None:
            async for message in messenger.messages("t"):
                if message.payload == "end":
                    break
                got.append(message.payload)

        consumer = asyncio.ensure_future(consume())
        while not await messenger.broadcast("t", 0):
            await asyncio.sleep(0)
        receipts = [await messenger.send_to_any("t", n, ack=True) for n in (1, 2)]
        assert {receipt.attempts for receipt in receipts} == {1}
        await messenger.broadcast("t", "end")
        async with asyncio.timeout(10):
            await consumer
        assert got == [0, 1, 2]

    asyncio.run(main())


def test_a_sender_that_is_cancelled_leaves_nothing_behind() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        messenger.on("t", lambda _: gate.wait())
        first = asyncio.ensure_future(messenger.call("t"))
        second = asyncio.ensure_future(messenger.call("t"))
        await asyncio.sleep(0.01)
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        gate.set()
        await first
        assert await messenger.call("t") is True

    asyncio.run(main())


class OfItsOwn(BaseException):
    """Nothing that `except Exception` catches."""


async def raises_its_own(message: Message) -> Any:
    if message.payload == "wrong":
        raise OfItsOwn("of its own")
    return message.payload


def exits(message: Message) -> Any:
    return sys.exit("exits") if message.payload == "wrong" else message.payload


async def cancels_itself(message: Message) -> Any:
    if message.payload == "wrong":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(10)
    return message.payload


@pytest.mark.parametrize(
    ("handler", "text"), [(raises_its_own, "of its own"), (exits, "exits"), (cancels_itself, "CancelledError")]
)
def test_whatever_a_handler_raises_the_next_message_is_handled(handler: Callable[[Message], Any], text: str) -> None:
    async def main() -> None:
        messenger.on("t", handler)
        with pytest.raises(messenger.CallFailed, match=text):
            await messenger.call("t", "wrong", timeout=2)
        assert (await messenger.send_to_any("t", "wrong", ack=True, timeout=2)).attempts == 1
        assert await messenger.call("t", "right", timeout=2) == "right"

    asyncio.run(main())


def test_each_of_several_handlers_that_raise_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for text in ("first", "second"):
            messenger.on("t", lambda _, text=text: {}[text])
        with pytest.raises(messenger.CallFailed, match="first"):
            await messenger.call("t")

    logger = logging.getLogger("serve.error")
    logger.addHandler(caplog.handler)
    try:
        asyncio.run(main())
    finally:
        logger.removeHandler(caplog.handler)
    told = list(dict.fromkeys(record for record in caplog.records if record.name == "serve.error"))
    assert [str(record.exc_info[1]) for record in told if record.exc_info] == ["'first'", "'second'"]


def test_an_answer_with_keys_that_cannot_be_read_is_the_handlers_failure() -> None:
    async def main() -> None:
        messenger.on("t", lambda _: {(1, 2): 3})
        with pytest.raises(messenger.CallFailed, match="a tuple or a dict as a key"):
            await messenger.call("t", timeout=2)

    asyncio.run(main())


def test_handlers_that_nothing_would_run_are_refused() -> None:
    async def asynchronous(message: Message) -> AsyncIterator[int]:
        yield 1

    def synchronous(message: Message) -> Iterator[int]:
        yield 1

    for handler in (asynchronous, synchronous):
        with pytest.raises(TypeError, match="a handler cannot be a generator"):
            messenger.on("t", handler)
    for concurrency in (0, CONCURRENCY + 1, 10**30):
        with pytest.raises(ValueError, match="concurrency is a number from 1 to"):
            messenger.on("t", print, concurrency=concurrency)


def test_a_slot_that_no_server_has_holds_up_nothing() -> None:
    async def main() -> None:
        messenger.on("t", lambda message: message.payload)
        with pytest.raises(messenger.NoReceiver):
            await messenger.send_to(2**70, "t", timeout=1)
        assert await messenger.call("t", 1, timeout=2) == 1

    asyncio.run(main())


def test_another_threads_event_loop_is_served_by_the_first_one() -> None:
    threads: list[threading.Thread] = []

    async def main() -> None:
        messenger.on("t", lambda message: threads.append(threading.current_thread()))
        assert await messenger.broadcast("t") == 1
        assert await asyncio.to_thread(lambda: asyncio.run(messenger.broadcast("t"))) == 1
        assert await asyncio.to_thread(lambda: asyncio.run(messenger.call("t"))) is None
        await asyncio.to_thread(lambda: asyncio.run(messenger.ready(timeout=1)))

    asyncio.run(main())
    assert threads == [threading.main_thread()] * 3


def test_iterations_in_another_threads_event_loop_are_told_what_works_there() -> None:
    async def iterate(what: Any) -> None:
        async for _ in what():
            pass

    async def main() -> None:
        await messenger.ready()
        for what in (lambda: messenger.messages("t"), messenger.presence):
            with pytest.raises(RuntimeError, match=r"in a thread write `for … in messenger\.sync\."):
                await asyncio.to_thread(asyncio.run, iterate(what))

    asyncio.run(main())


def test_a_process_knows_itself_in_threads_and_before_there_is_a_loop() -> None:
    found = [messenger.me]

    async def main() -> None:
        await messenger.broadcast("t")
        found.append(await asyncio.to_thread(lambda: messenger.me))

    asyncio.run(main())
    found.append(messenger.me)
    assert [(me.role, me.slot, me.generation) for me in found] == [("worker", 0, 0)] * 3


def test_who_cancels_has_no_more_under_way_than_others() -> None:
    async def main() -> None:
        frames: list[bytes] = []
        link = Link(Identity(Role.WORKER, 0, 1, 1), asyncio.get_running_loop(), frames.append)
        sender = MessageSender(link)

        def under_way() -> list[str]:
            decoded = [decode(data) for data in frames]
            return [entry[0] for frame in decoded if frame.kind == "msg.send" for entry in frame.head["m"]]

        async def given_up(count: int) -> None:
            for _ in range(count):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await sender.send(MessageKind.ANY_WORKER, "t", b"", AckMode.HANDLED, 1, 0, 10.0)

        await given_up(WINDOW + 20)
        ids = under_way()
        assert len(ids) == WINDOW // 2
        link.receive(encode("msg.confirm", {"m": [[id, "f", ["full", ""], 0] for id in ids[:5]]}))
        await given_up(20)
        assert len(under_way()) == WINDOW // 2 + 5
        link.close()

    asyncio.run(main())


def test_nothing_is_withdrawn_before_it_is_sent() -> None:
    """The time of many is over in one turn of the loop, and of some before the frame with their messages is full."""

    async def main() -> None:
        frames: list[bytes] = []
        loop = asyncio.get_running_loop()
        link = Link(Identity(Role.WORKER, 0, 1, 1), loop, frames.append)
        sender = MessageSender(link)

        def send(timeout: float) -> asyncio.Task[Any]:
            return loop.create_task(sender.send(MessageKind.BROADCAST, "t", b"", AckMode.ACCEPTED, 1, 0, timeout))

        tasks = [send(0.02) for _ in range(5)]
        await until(lambda: bool(frames))
        tasks += [send(0.002) for _ in range(20)]
        loop.call_soon(time.sleep, 0.03)  # all are due in the next turn, of which uvloop deals with timers first
        sent: list[str] = []
        withdrawn: list[str] = []
        while len(withdrawn) < len(tasks):
            await asyncio.sleep(0.001)
            for frame in map(decode, frames):
                if frame.kind == "msg.send":
                    sent += [entry[0] for entry in frame.head["m"]]
                else:
                    withdrawn += frame.head["m"]
                    assert set(withdrawn) <= set(sent)
            frames.clear()
        link.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    uvloop.run(main())


def test_a_message_that_comes_after_the_end_of_an_iteration_was_not_handled() -> None:
    async def main() -> None:
        incoming = MessageIteration()
        incoming.close()
        with pytest.raises(EOFError):
            await incoming.take(Message("t", None, "id", 1, Origin("worker", 0, 1)))

    asyncio.run(main())


def test_what_an_earlier_loop_left_behind_counts_for_nothing() -> None:
    seen: list[list[int]] = []
    loop = asyncio.new_event_loop()
    never = asyncio.Event()

    async def left_behind() -> None:
        messenger.on("t", lambda _: never.wait())
        await messenger.send_to_any("t")
        await asyncio.sleep(0.01)

    loop.run_until_complete(left_behind())
    tasks = asyncio.all_tasks(loop)

    async def main() -> None:
        messenger.off("t")
        running = [0]

        async def handler(message: Message) -> None:
            running[0] += 1
            seen.append([message.payload, running[0]])
            await asyncio.sleep(0.005)
            running[0] -= 1

        messenger.on("t", handler)
        await messenger.send_to_workers("t", 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(messenger.send_to_any("t", n, ack=True) for n in range(1, 5)))

    asyncio.run(main())
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    assert [most for _, most in seen] == [1] * 5


def test_loops_that_take_turns_confirm_nothing_for_each_other() -> None:
    """Two event loops of one thread, each with a message in a handler and one behind it; the second one's end first."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    ended: list[str] = []
    gates = {"first": asyncio.Event(), "second": asyncio.Event()}

    @messenger.on("t")
    async def handler(message: Message) -> None:
        await gates[message.payload[:-1]].wait()
        ended.append(message.payload)

    async def begin(name: str) -> list[asyncio.Task[Any]]:
        sends = [asyncio.create_task(messenger.send_to_any("t", f"{name}{n}", ack=True)) for n in range(3)]
        await asyncio.sleep(0.01)
        return sends

    async def finish(name: str, sends: list[asyncio.Task[Any]]) -> list[Any]:
        assert not any(task.done() for task in sends)
        gates[name].set()
        return await asyncio.gather(*sends)

    sends = {"first": first.run_until_complete(begin("first"))}
    sends["second"] = second.run_until_complete(begin("second"))
    for name, loop in (("first", first), ("second", second)):
        assert len(loop.run_until_complete(finish(name, sends[name]))) == 3
        loop.close()
    assert ended == [f"{name}{n}" for name in ("first", "second") for n in range(3)]


def test_a_large_message_is_not_passed_by_small_ones_for_ever() -> None:
    """A topic that has nothing under way waits for room before all who come later."""

    async def main() -> None:
        window = SendWindow(asyncio.get_running_loop())
        for number in range(WINDOW_BYTES // 5_000 - 1):
            assert window.try_enter(f"small {number}", 5_000)
        large = asyncio.create_task(window.enter("large", 100_000))
        later = [asyncio.create_task(window.enter(f"later {number}", 1_000)) for number in range(3)]
        await asyncio.sleep(0)
        assert not window.try_enter("small", 1)
        for number in range(18):
            window.leave(f"small {number}", 5_000)
            await asyncio.sleep(0)
            assert not any(task.done() for task in later)
        window.leave("small 18", 5_000)
        await asyncio.gather(large, *later)
        waiting = asyncio.create_task(window.enter("large too", 120_000))
        behind = asyncio.create_task(window.enter("behind", 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await behind

    asyncio.run(main())


def test_what_a_topic_cannot_get_rid_of_holds_up_other_topics_last() -> None:
    """The window of a process is shared out: a receiver that takes nothing of one topic is passed by the others."""

    async def main() -> None:
        frames: list[bytes] = []
        link = Link(Identity(Role.WORKER, 0, 1, 1), asyncio.get_running_loop(), frames.append)
        sender = MessageSender(link)

        def send(topic: str, size: int = 1) -> asyncio.Task[Any]:
            return asyncio.create_task(
                sender.send(MessageKind.BROADCAST, topic, b"x" * size, AckMode.ACCEPTED, 1, -1, 30.0)
            )

        def came() -> list[list[Any]]:
            return [entry for data in frames for entry in decode(data).head["m"]]

        stuck = [send(f"stuck {n % 3}") for n in range(3 * WINDOW)] + [send("large", 100_000) for _ in range(30)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(came()) < WINDOW
        for number in range(50):
            other = send("other")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            id, _, topic, *_ = came()[-1]
            assert topic == "other"
            link.receive(encode("msg.confirm", {"m": [[id, "a", 1, 0]]}))
            assert await other == 1, number
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)

    asyncio.run(main())
