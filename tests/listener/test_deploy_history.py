"""The list of deploys: what each event makes of it, and how it is kept in the store."""

from __future__ import annotations

from typing import Any

import msgspec

from serve_asgi.hub.core import HubSettings
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import encode, pack_value, unpack_value
from serve_asgi.ipc.lifecycle_states import DeployOutcome
from serve_asgi.listener.deploy_history import KEPT, DeployedVersion, DeployHistory, DeployKind
from serve_asgi.listener.event_history import Record
from serve_asgi.listener.stored_deploys import MOST_BYTES, PREFIX, WRITTEN, StoredDeploys
from tests.hub.port import RecordingPort


class Clock:
    """A time of day that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def version(generation: int, **more: str) -> DeployedVersion:
    return DeployedVersion(generation, app="app:app", directory=f"/srv/releases/{generation}", **more)


def record(event: str, **about: Any) -> Record:
    return {"at": 0.0, "level": "info", "event": event, "text": "", "detail": "", **about}


def started(history: DeployHistory, generation: int = 1) -> None:
    history.begin("start", DeployKind.START, "alice, from systemd")
    history.generation_begins(version(generation), [])
    history.take(record("server_started", seconds=0.5))


def reloaded(history: DeployHistory, generation: int, by: str = "HUP") -> None:
    history.begin(by)
    history.generation_begins(version(generation), [])
    history.take(record("reload_finished", seconds=1.5))


def test_a_start_and_a_reload() -> None:
    clock = Clock()
    history = DeployHistory(clock)
    started(history)
    clock.now += 10
    history.requested("serve reload", "bob, from make")
    history.begin("serve reload")
    history.generation_begins(version(2), ["--keep-alive 33.0"])
    assert [each["outcome"] for each in history.last()] == ["under_way", "started"]
    history.take(record("worker_ready", generation=2))
    history.take(record("reload_finished", seconds=1.5))
    history.take(record("generation_ended", generation=1, handed_over=412, cut=3))
    reload, start = history.last()
    assert (start["from"], start["to"]["generation"], start["seconds"]) == (None, 1, 0.5)
    assert (start["by"], start["who"], start["handed_over"]) == ("start", "alice, from systemd", None)
    assert (reload["by"], reload["who"], reload["at"]) == ("serve reload", "bob, from make", clock.now)
    assert (reload["from"]["directory"], reload["to"]["directory"]) == ("/srv/releases/1", "/srv/releases/2")
    assert (reload["options"], reload["outcome"], reload["seconds"]) == (["--keep-alive 33.0"], "done", 1.5)
    assert (reload["handed_over"], reload["cut"]) == (412, 3)
    assert history.outcomes == {"started": 1, "done": 1}


def test_what_was_refused_changes_nothing_for_the_next() -> None:
    history = DeployHistory()
    started(history)
    history.begin("HUP")
    history.take(record("reload_refused", reason="serve.toml is invalid", seconds=0.1))
    history.begin("HUP")
    history.generation_begins(version(2), [])
    history.take(record("reload_refused", reason="it does not start " + "x" * 1000, generation=2, seconds=2.0))
    history.take(record("generation_ended", generation=2, handed_over=0, cut=0))
    reloaded(history, 3)
    done, second, first, _ = history.last()
    assert (first["to"], first["text"]) == (None, "serve.toml is invalid")
    assert (second["to"]["generation"], second["outcome"], second["handed_over"]) == (2, "refused", None)
    assert len(second["text"]) == 500
    assert done["from"]["generation"] == 1


def test_who_requested_it_goes_with_the_first_of_several_and_with_no_other() -> None:
    history = DeployHistory()
    started(history)
    history.requested("serve reload", "alice")
    history.requested("serve reload", "bob")
    reloaded(history, 2, "serve reload")
    history.requested("serve reload", "carol")  # but a signal was earlier
    reloaded(history, 3, "HUP")
    reloaded(history, 4, "serve reload")
    assert [each["who"] for each in history.last(3)] == ["", "", "alice"]


def test_one_that_comes_before_the_end_of_another_supersedes_it() -> None:
    history = DeployHistory()
    started(history)
    history.begin("app.py has changed")
    history.generation_begins(version(2), [])
    reloaded(history, 3, "app.py has changed")
    superseded = history.last()[1]
    assert (superseded["outcome"], superseded["to"]["generation"]) == ("superseded", 2)
    assert superseded["text"] == "app.py has changed came before its end"


def test_a_start_is_compared_with_what_ran_in_the_same_directory() -> None:
    def found(*places: str) -> object:
        others, history = [DeployHistory(), DeployHistory()], DeployHistory()
        history.place = "/srv/a"
        for number, (place, other) in enumerate(zip(places, others, strict=True), 1):
            other.place = place
            started(other, number)
            history.others[place] = [*other.own]
        started(history, 3)
        return (history.last(1)[0]["from"] or {}).get("generation")

    assert found("/srv/a", "/srv/b") == 1
    assert found("/srv/b", "") == 2  # of an earlier version, which did not say where it was
    assert found("/srv/b", "/srv/c") is None


def test_the_end_of_the_server_ends_what_is_under_way() -> None:
    history = DeployHistory()
    started(history)
    history.begin("HUP")
    history.server_ends("")
    assert [each["outcome"] for each in history.last()] == ["given_up", "started"]
    history.server_ends("")
    assert history.outcomes["given_up"] == 1
    failed = DeployHistory()
    failed.begin("start", DeployKind.START)
    failed.server_ends("app:app cannot be imported")
    assert [(each["outcome"], each["text"]) for each in failed.last()] == [("refused", "app:app cannot be imported")]
    failed.take(record("reload_refused", by="HUP"))  # too late: it is no deploy
    assert len(failed.last()) == 1


def test_the_list_is_bounded_and_newest_first() -> None:
    clock = Clock()
    history = DeployHistory(clock)
    started(history)
    for generation in range(2, KEPT + 20):
        clock.now += 1
        reloaded(history, generation)
    assert len(history.last()) == len(history.last(10**9)) == KEPT
    assert history.last(0) == []
    assert [each["to"]["generation"] for each in history.last(2)] == [KEPT + 19, KEPT + 18]


def test_a_new_program_of_the_listener_goes_on_with_it() -> None:
    history = DeployHistory()
    started(history)
    reloaded(history, 2)
    again = DeployHistory.from_state(msgspec.json.decode(msgspec.json.encode(history.to_state())))
    assert again.last() == history.last()
    assert (again.life, again.outcomes) == (history.life, history.outcomes)
    again.take(record("generation_ended", generation=1, handed_over=7, cut=0))
    assert again.last()[0]["handed_over"] == 7
    reloaded(again, 3)
    assert again.last()[0]["from"]["generation"] == 2
    reloaded(empty := DeployHistory.from_state(None), 9)  # of a program that had no such list
    assert (empty.last()[0]["from"], empty.last()[0]["to"]["generation"]) == (None, 9)


def test_a_canary_that_is_promoted_taken_back_or_undecided() -> None:
    history = DeployHistory()
    started(history)
    numbers = {"canary": {"requests": 90, "errors": 0}, "current": {"requests": 810, "errors": 2}}

    def tried(generation: int, verdict: str, reason: str) -> dict[str, Any]:
        history.begin("serve reload")
        history.generation_begins(version(generation), [])
        history.take(record("canary_started", generation=generation, share=0.1, seconds=60.0, workers=1))
        assert [history.last()[0][name] for name in ("kind", "outcome")] == ["canary", "trial"]
        history.take(record(verdict, generation=generation, reason=reason, **numbers))
        return history.last()[0]

    assert tried(2, "canary_promoted", "nothing is worse")["outcome"] == "under_way"
    history.take(record("reload_finished", seconds=62.0))
    history.take(record("generation_ended", generation=1, handed_over=5, cut=0))
    promoted = history.last()[0]
    assert (promoted["outcome"], promoted["handed_over"], promoted["seconds"]) == ("promoted", 5, 62.0)
    figures = {"canary_requests": 90, "canary_errors": 0, "current_requests": 810, "current_errors": 2}
    assert promoted["trial"] == {"share": 0.1, "seconds": 60.0, "workers": 1, **figures}

    bad = tried(3, "canary_withdrawn", "8 of 8 requests failed")
    history.take(record("reload_refused", reason="the canary was taken back: 8 of 8 requests failed"))
    history.take(record("generation_ended", generation=3, handed_over=2, cut=0))
    assert history.last()[0] == bad
    assert (bad["outcome"], bad["text"], bad["handed_over"]) == ("taken_back", "8 of 8 requests failed", None)

    tried(4, "canary_undecided", "3 requests")
    assert history.last()[0]["outcome"] == "trial"  # which may be held
    history.take(record("canary_promoted", generation=4, reason="inconclusive: 3 requests", **numbers))
    history.take(record("reload_finished", seconds=61.0))
    told = history.last()[0]
    assert (told["outcome"], told["text"], told["from"]["generation"]) == (
        "inconclusive",
        "3 requests",
        2,
    )
    assert history.outcomes == {"started": 1, "promoted": 1, "taken_back": 1, "inconclusive": 1}


def test_roll_backs() -> None:
    history = DeployHistory()
    started(history)
    reloaded(history, 2)
    history.requested("serve rollback", "alice")
    history.begin("serve rollback", DeployKind.ROLLBACK)
    history.generation_begins(version(1), [])
    history.take(record("rollback_finished", generation=1, workers=2, seconds=0.004))
    history.take(record("generation_ended", generation=2, handed_over=9, cut=0))
    back = history.last()[0]
    assert (back["kind"], back["outcome"], back["who"], back["handed_over"]) == ("rollback", "rolled_back", "alice", 9)
    assert (back["from"]["directory"], back["to"]["directory"]) == ("/srv/releases/2", "/srv/releases/1")
    reloaded(history, 3)
    history.take(record("generation_ended", generation=1, handed_over=4, cut=0))
    assert [each["handed_over"] for each in history.last()] == [4, 9, None, None]

    history.begin("--auto-rollback", DeployKind.ROLLBACK, reason="3 of 3 requests failed")
    history.generation_begins(version(1), [])
    history.take(record("rollback_finished", generation=1, workers=2, seconds=0.004))
    assert (history.last()[0]["by"], history.last()[0]["text"]) == ("--auto-rollback", "3 of 3 requests failed")
    reloaded(history, 3)

    history.begin("serve rollback", DeployKind.ROLLBACK)
    history.generation_begins(version(1), [])
    history.take(record("rollback_refused", reason="no worker of generation 1 could serve again"))
    assert history.last()[0]["outcome"] == "refused"
    history.begin("serve rollback", DeployKind.ROLLBACK)  # to a release that is deployed again
    history.generation_begins(version(4), [])
    history.take(record("reload_finished", seconds=1.0))
    assert (history.last()[0]["kind"], history.last()[0]["outcome"]) == ("rollback", "rolled_back")
    history.begin("HUP")
    history.take(record("rollback_finished", generation=4, by="serve rollback", seconds=0.0))
    assert (history.last()[0]["outcome"], history.last()[0]["by"]) == ("given_up", "HUP")
    before = history.last()
    history.take(record("rollback_refused", reason="nothing stands by"))
    assert history.last() == before


def test_names_that_are_no_text_are_written_as_they_can_be() -> None:
    history = DeployHistory()
    history.begin("HUP", who="ren\udce9")
    history.server_ends("")
    assert history.last()[0]["who"] == "ren\\udce9"
    pack_value(history.last(), "it")


# ---- kept in the store


class Store:
    """A store process that holds what it is given, or nothing of it."""

    def __init__(self, **settings: Any) -> None:
        self.port = RecordingPort()
        self.hub = create_hub(self.port, HubSettings(stored=True, **settings))
        self.state = self.hub.component(SharedState)
        self.version = 0
        self.answered = 0

    def up(self, entries: dict[str, Any] | None = None) -> None:
        body = [[key, number, pack_value(value, key)] for number, (key, value) in enumerate((entries or {}).items(), 1)]
        self.version += len(body)
        self.hub.take_from_store(encode("store.snapshot", {"first": True}, pack_value(body, "it")))
        self.hub.take_from_store(encode("store.up", {"server": "x", "shared": False}))

    def writes(self) -> list[tuple[str, str, Any]]:
        """What it has been asked to write since the last call, which it does."""
        asked = self.port.to_store[self.answered :]
        self.answered = len(self.port.to_store)
        for frame in asked:
            self.version += 1
            deleted = frame.head["op"] == "delete"
            head = {"id": frame.head["id"], "key": frame.head["key"], "version": self.version, "deleted": deleted}
            self.hub.take_from_store(encode("store.written", head, frame.body))
        return [(f.head["op"], f.head["key"], unpack_value(f.body) if f.body else None) for f in asked]

    def refuse(self) -> int:
        """Refuse all of it; how much that was."""
        asked = self.port.to_store[self.answered :]
        self.answered = len(self.port.to_store)
        for frame in asked:
            head = {"id": frame.head["id"], "code": "storage", "text": "the disk is full", "version": 0}
            self.hub.take_from_store(encode("store.refused", head))
        return len(asked)


def test_each_server_writes_its_own_and_shows_those_of_all() -> None:
    store, clock = Store(), Clock()
    store.up()
    first = DeployHistory(clock)
    kept = StoredDeploys(store.hub, first)
    started(first)
    kept.write()
    ((_, key, value),) = store.writes()
    assert key == PREFIX + first.life
    kept.write()
    assert store.writes() == []  # nothing has changed
    reloaded(first, 2)
    kept.write()
    ((_, _, value),) = store.writes()

    clock.now += 100
    restarted = Store()
    second = DeployHistory(clock)
    StoredDeploys(restarted.hub, second)
    restarted.up({key: value})
    started(second)
    start, *before = second.last()
    assert before == first.last()
    assert (start["from"]["generation"], start["to"]["generation"]) == (2, 1)


def test_what_is_under_way_is_not_written_before_its_end() -> None:
    store = Store()
    store.up()
    kept = StoredDeploys(store.hub, history := DeployHistory())
    history.begin("start", DeployKind.START)
    kept.write()
    assert store.writes() == []
    history.server_ends("it does not start")
    kept.write()
    assert [each["outcome"] for each in store.writes()[0][2]] == [DeployOutcome.REFUSED.value]


def test_a_store_that_is_away_gets_it_when_it_is_back() -> None:
    store = Store()
    kept = StoredDeploys(store.hub, history := DeployHistory())
    started(history)
    kept.write()
    assert store.port.to_store == []
    store.up()
    kept.write(again=True)
    assert store.refuse() == 1
    kept.write()
    assert store.writes() == []  # not with each event
    kept.write(again=True)
    assert len(store.writes()) == 1
    kept.write(again=True)
    assert store.writes() == []


def test_little_is_written_however_long_the_texts() -> None:
    store = Store(value_limit=4000)
    store.up()
    kept = StoredDeploys(store.hub, history := DeployHistory())
    started(history)
    for generation in range(2, KEPT):
        history.begin("HUP", who="é" * 10_000)
        history.generation_begins(version(generation), [f"--hook {'x' * 5000}"] * 5)
        history.take(record("reload_finished", seconds=1.0))
    kept.write()
    ((_, key, value),) = store.writes()
    assert len(pack_value(value, key)) <= 4000 < MOST_BYTES
    short = DeployHistory()
    for generation in range(1, KEPT):
        reloaded(short, generation)
    roomy = Store()
    roomy.up()
    StoredDeploys(roomy.hub, short).write()
    assert len(roomy.writes()[0][2]) == WRITTEN


def test_a_store_may_hold_anything() -> None:
    """Another program may have written to it, or a later version of this one."""
    store = Store()
    started(good := DeployHistory())
    deploy = good.last()[0]
    later = {**deploy, "something": "new"}
    unknown = {**deploy, "outcome": "forgotten"}
    kept = StoredDeploys(store.hub, history := DeployHistory())
    store.up(
        {
            f"{PREFIX}1": [later, unknown, None, 7, {**deploy, "at": float("nan")}, {**deploy, "text": "x" * 10_000}],
            f"{PREFIX}2": "nonsense",
            f"{PREFIX}3": [[[]]],
            f"{PREFIX}{history.life}": [deploy],
        }
    )
    kept.write()
    assert history.last() == [deploy]


def test_keys_of_servers_whose_deploys_are_too_old_to_be_shown_are_deleted() -> None:
    clock, lives = Clock(), {}
    for number in range(KEPT + 3):
        clock.now += 1
        started(life := DeployHistory(clock), number)
        lives[PREFIX + life.life] = life.last()
    store = Store()
    clock.now += 1
    kept = StoredDeploys(store.hub, history := DeployHistory(clock))
    store.up(lives)
    started(history)
    kept.write()
    written, *deleted = store.writes()
    assert written[1] == PREFIX + history.life
    assert [(op, key) for op, key, _ in deleted] == [("delete", key) for key in list(lives)[:4]]
    assert len(history.last()) == KEPT
    assert set(history.others) == set(list(lives)[4:])
