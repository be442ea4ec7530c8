"""--preload as users see it: one import for a generation, workers that are forked from it, and all else as without."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.admin.scraping import ADMIN, admin_address, value, wait_for
from tests.certificates import Authority
from tests.running import RunningServer, children, connect, request, running, state_of, until

APPLICATION = """
import json, os, random, ssl, sys, threading, logging
{first}

VERSION = {version!r}
with open("imports", "a") as file:
    print(os.getpid(), file=file)
{imported}


def said():
    threads = []
    thread = threading.Thread(target=lambda: (logging.getLogger("app").error("from a thread"), threads.append(1)))
    thread.start()
    thread.join()
    loop = type(__import__("asyncio").get_running_loop())
    return dict(pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), version=VERSION, loop=loop.__module__,
        random=random.random(), rand=ssl.RAND_bytes(8).hex(), threads=threads,
        main=threading.current_thread() is threading.main_thread(), **globals().get("MORE", {{}}))


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {startup}
        with open("workers", "a") as file:
            print(json.dumps(said()), file=file)
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        return await send({{"type": "lifespan.shutdown.complete"}})
    data = json.dumps(said()).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})
"""


def write(directory: Path, version: str = "1", first: str = "", imported: str = "", startup: str = "pass") -> None:
    """The application; `first` and `imported` are run when it is imported, `startup` in its lifespan."""
    text = APPLICATION.format(version=version, first=first, imported=imported, startup=startup)
    (directory / "app.py").write_text(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def imports(server: RunningServer) -> list[int]:
    """The PIDs of the processes that have imported the application."""
    return [int(line) for line in (server.directory / "imports").read_text().split()]


def workers(server: RunningServer) -> list[dict[str, Any]]:
    """What each worker has said in its lifespan startup, in the order of their starts."""
    return [json.loads(line) for line in (server.directory / "workers").read_text().splitlines()]


def ask(server: RunningServer) -> dict[str, Any]:
    with connect(server) as connection:
        status, data = request(connection)
    assert status == 200
    answer: dict[str, Any] = json.loads(data)
    return answer


def template(server: RunningServer) -> int:
    """The PID of the newest template, from the kernel."""
    return max(pid for pid in children(server.pid) if comm(pid).startswith("serve-tmpl"))


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def zombies(server: RunningServer) -> list[int]:
    return [pid for pid in children(server.pid) if state_of(pid) == "Z"]


def killed_and_replaced(server: RunningServer, count: int) -> None:
    """Kill a worker, and wait for the one in its place."""
    before = len(workers(server))
    pid = next(pid for pid in children(server.pid) if comm(pid).startswith("serve-w"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(workers(server)) > before, server.log)
    server.wait_for_workers(count)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_each_generation_imports_once_and_a_reload_brings_new_code(project: Path, loop: str) -> None:
    with running("app:app", "--preload", "--workers", "3", "--loop", loop, directory=project) as server:
        assert len(imports(server)) == 1
        assert [w["ppid"] for w in workers(server)] == [server.pid] * 3
        assert {w["loop"].partition(".")[0] for w in workers(server)} == {loop}
        assert all(w["sid"] == w["pid"] and w["main"] and w["threads"] for w in workers(server))
        assert len({w["random"] for w in workers(server)}) == len({w["rand"] for w in workers(server)}) == 3
        assert "from a thread" in server.log()
        with connect(server) as connection:
            assert json.loads(request(connection)[1])["version"] == "1"
            write(project, "2")
            server.reload()
            server.wait_until(lambda status: len(status["generations"]) == 1)
            assert json.loads(request(connection)[1])["version"] == "2"
        assert len(imports(server)) == 2
        until(lambda: [t["generation"] for t in server.status()["templates"]] == [2])
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0
    assert all(not state_of(pid) for pid in [*imports(server), *(w["pid"] for w in workers(server))])


def test_replaced_and_added_workers_come_from_the_template(project: Path) -> None:
    with running("app:app", "--preload=on", "--workers", "2", directory=project) as server:
        killed_and_replaced(server, 2)
        control_client.ask(server.control, "scale", to=4)
        server.wait_for_workers(4)
        control_client.ask(server.control, "scale", to=1)
        server.wait_for_workers(1)
        assert len(workers(server)) == 5
        assert len(imports(server)) == 1
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


BROKEN = {
    "syntax": ("def app(:\n", "SyntaxError"),
    "import": ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
    "exit": ("import os\nos._exit(7)\n", "its template died: exit status 7"),
    "sys.exit": ("import sys\nsys.exit(3)\n", "SystemExit"),
    "missing": ("other = 1\n", "has no attribute 'app'"),
}


@pytest.mark.once
@pytest.mark.parametrize("how", sorted(BROKEN))
def test_bad_code_takes_nothing_down(project: Path, how: str) -> None:
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        (project / "app.py").write_text(BROKEN[how][0])
        with pytest.raises(RequestRefused, match="generation 1 serves on") as refused:
            server.reload()
        assert BROKEN[how][1] in str(refused.value) + refused.value.detail
        killed_and_replaced(server, 2)  # by the template of the code that serves
        assert ask(server)["version"] == "1"
        os.kill(template(server), signal.SIGKILL)
        server.logged("template of generation 1 died: signal SIGKILL")
        os.kill(next(pid for pid in children(server.pid) if comm(pid).startswith("serve-w")), signal.SIGKILL)
        server.logged("worker . of generation 1 .*cannot be .*|worker . of generation 1.*(exit status 7|no attribute)")
        assert ask(server)["version"] == "1"
        write(project, "2")
        server.wait_for_workers(2)
        assert len(server.status()["templates"]) == 1
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


@pytest.mark.once
@pytest.mark.parametrize("how", ["import", "missing"])
def test_bad_code_at_the_first_start_ends_the_server_as_without(tmp_path: Path, how: str) -> None:
    (tmp_path / "app.py").write_text(BROKEN[how][0])
    found = []
    for preload in ("off", "on"):
        server = RunningServer("app:app", f"--preload={preload}", directory=tmp_path)
        found.append((server.wait(), BROKEN[how][1] in server.log()))
        server.close()
    assert found == [found[0]] * 2
    assert found[0][1]


def test_a_worker_that_dies_before_its_pid_is_known_fails_its_generation(project: Path) -> None:
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        write(project, imported="os.register_at_fork(after_in_child=lambda: os._exit(3))")
        with pytest.raises(RequestRefused, match="it died before it served: exit status 3"):
            server.reload()
        assert ask(server)["version"] == "1"
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


def test_hooks_of_the_application_run_once_for_each_worker(project: Path) -> None:
    write(
        project,
        first="MORE = {'forks': 0}",
        imported="os.register_at_fork(after_in_child=lambda: MORE.update(forks=MORE['forks'] + 1))",
    )
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        killed_and_replaced(server, 2)
        assert [w["forks"] for w in workers(server)] == [1, 1, 1]
        assert server.stop() == 0


# ---- the import guard

THREAD = "stop = threading.Event(); threading.Thread(target=stop.wait, name='the-poller', daemon=True).start()"
SOCKET = "import socket; kept = socket.create_server(('127.0.0.1', 0))"
PIPE = "kept = os.pipe()"
EPOLL = "import select; kept = select.epoll()"
SQLITE = "import sqlite3; kept = sqlite3.connect('data'); kept.execute('create table if not exists t (n)')"
NATIVE = """
import ctypes
libc = ctypes.CDLL(None)
identity = ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(identity), None, libc.pause, None) == 0
"""
LEFT = {
    "thread": (THREAD, r"the thread the-poller, started by app \(app.py, line \d+\)"),
    "socket": (SOCKET, r"a socket \(INET\) on 127.0.0.1:\d+, opened by app \(app.py, line \d+\)"),
    "pipe": (PIPE, "a pipe"),
    "epoll": (EPOLL, "a descriptor of eventpoll"),
    "sqlite": (SQLITE, "the SQLite database .*/data"),
    "native": (NATIVE, r"a thread of no Python code \(.*\), started by a C library"),
}


@pytest.mark.parametrize("what", sorted(LEFT))
def test_what_must_not_be_forked_is_named_and_workers_are_fresh_interpreters(project: Path, what: str) -> None:
    code, named = LEFT[what]
    write(project, imported=code)
    with running("app:app", "--preload", directory=project) as server:
        assert len(server.logged(named)) == len(server.logged("must not be forked")) == 1
        assert len(imports(server)) == 2  # the template, which has left, and the worker
        until(lambda: not server.status()["templates"])
        assert server.stop() == 0


@pytest.mark.once
def test_after_what_must_not_be_forked_all_is_as_without_preload_until_a_reload(project: Path) -> None:
    write(project, imported=THREAD)
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        assert len(imports(server)) == 3
        killed_and_replaced(server, 2)
        assert len(imports(server)) == 4
        until(lambda: not server.status()["templates"])
        control_client.ask(server.control, "reload-listener")
        killed_and_replaced(server, 2)
        assert len(server.logged("must not be forked")) == 1
        write(project, "2")
        server.reload()
        assert len(imports(server)) == 6
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


@pytest.mark.once
def test_strict_refuses_instead(project: Path) -> None:
    with running("app:app", "--preload=strict", "--workers", "2", directory=project) as server:
        write(project, "2", imported=THREAD)
        with pytest.raises(RequestRefused, match=r"--preload=strict\): the thread the-poller, started by app"):
            server.reload()
        assert ask(server)["version"] == "1"
        write(project, "3")
        server.reload()
        assert ask(server)["version"] == "3"
        assert server.stop() == 0
    write(project, imported=THREAD)
    refused = RunningServer("app:app", "--preload", "strict", directory=project)
    assert refused.wait() == 2
    assert "the-poller" in refused.log()
    refused.close()


def test_a_thread_that_ends_by_itself_is_no_reason(project: Path) -> None:
    write(project, imported="import time; threading.Thread(target=time.sleep, args=(0.05,)).start()")
    with running("app:app", "--preload=strict", directory=project) as server:
        assert len(imports(server)) == 1
        assert server.stop() == 0


def test_threads_of_openblas_end_at_a_fork(project: Path) -> None:
    pytest.importorskip("numpy")
    write(project, first="import numpy; MORE = {}", startup="MORE['numpy'] = float(numpy.random.random())")
    environment = {"OPENBLAS_NUM_THREADS": "4"}
    with running("app:app", "--preload=strict", "--workers", "3", directory=project, environment=environment) as server:
        assert len(imports(server)) == 1
        assert len({w["numpy"] for w in workers(server)}) == 3
        assert server.stop() == 0


# ---- the end of a template, of the listener


@pytest.mark.once
def test_a_dead_template_is_started_again_by_the_next_worker(project: Path) -> None:
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        os.kill(template(server), signal.SIGKILL)
        server.logged("template of generation 1 died: signal SIGKILL; its workers serve on")
        assert ask(server)["version"] == "1"
        killed_and_replaced(server, 2)
        assert len(imports(server)) == 2
        killed_and_replaced(server, 2)
        assert len(imports(server)) == 2
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


def test_a_stopped_template_is_killed_when_a_workers_time_is_over(project: Path) -> None:
    with running("app:app", "--preload", "--workers", "2", "--startup-timeout", "3", directory=project) as server:
        before = template(server)
        os.kill(before, signal.SIGSTOP)
        killed_and_replaced(server, 2)
        assert state_of(before) == ""
        server.logged("template of generation 1 is killed: it did not respond in time")
        assert len(imports(server)) == 2
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


@pytest.mark.once
def test_a_hanging_import_ends_at_the_startup_timeout(project: Path) -> None:
    arguments = ("--preload", "--workers", "2", "--startup-timeout", "5")
    with running("app:app", *arguments, directory=project) as server:
        write(project, imported="import time; time.sleep(1000)")
        with pytest.raises(RequestRefused, match="--startup-timeout"):
            server.reload()
        assert ask(server)["version"] == "1"
        until(lambda: [t["generation"] for t in server.status()["templates"]] == [1])
        assert server.stop() == 0


@pytest.mark.parametrize("moment", ["serving", "importing"])
def test_nothing_is_left_when_the_listener_is_killed(project: Path, moment: str) -> None:
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        if moment == "importing":
            write(project, imported="import time; time.sleep(1000)")
            server.signal(signal.SIGHUP)
            until(lambda: len(imports(server)) == 2)
        left = children(server.pid)
        assert len(left) == (4 if moment == "importing" else 3)
        server.process.kill()
        server.process.wait()
        until(lambda: all(state_of(pid) in ("", "Z") for pid in left))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_middle_of_an_import(project: Path, number: signal.Signals) -> None:
    with running("app:app", "--preload", directory=project) as server:
        write(project, imported="import time; time.sleep(1000)")
        server.signal(signal.SIGHUP)
        until(lambda: len(imports(server)) == 2)
        pids = children(server.pid)
        server.signal(number)
        assert server.wait() == 0
        assert not any(state_of(pid) for pid in pids)


def test_the_listener_is_replaced_and_keeps_its_template(project: Path) -> None:
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        before = template(server)
        control_client.ask(server.control, "reload-listener")
        killed_and_replaced(server, 2)
        assert template(server) == before
        assert len(imports(server)) == 1
        write(project, "2")
        server.reload()
        assert ask(server)["version"] == "2"
        until(lambda: state_of(before) == "")
        until(lambda: not zombies(server), "the dead to be waited for")
        assert server.stop() == 0


# ---- what a worker has, and the template has not


def test_the_template_holds_no_listening_socket_and_no_key(project: Path) -> None:
    authority = Authority()
    cert, key = authority.server("localhost", "127.0.0.1").write(project)
    arguments = ("--preload", "--workers", "2", "--tls-cert", str(cert), "--tls-key", str(key))
    with running("app:app", *arguments, directory=project) as server:
        context: ssl.SSLContext = authority.client_context()
        for _ in range(2):
            with connect(server) as plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
                assert json.loads(request(connection)[1])["version"] == "1"
            killed_and_replaced(server, 2)
        held = Path(f"/proc/{template(server)}/fd")
        links = [os.readlink(each) for each in held.iterdir()]
        assert sum(link.startswith("socket:") for link in links) == 1, links  # its channel
        assert not any("memfd" in link for link in links)
        assert len(list(Path(f"/proc/{template(server)}/task").iterdir())) == 1
        assert server.stop() == 0


@pytest.mark.once
def test_prints_and_logs_of_import_and_worker_are_in_the_log(project: Path) -> None:
    write(project, imported="print('printed at import')", startup="print('printed by', os.getpid())")
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        server.logged("printed at import")
        for worker in workers(server):
            server.logged(f"printed by {worker['pid']}")
        assert server.stop() == 0
        assert server.log().count("printed at import") == 1


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_the_log_file_of_root_and_workers_of_another_user(tmp_path: Path) -> None:
    work, logs = tmp_path / "work", tmp_path / "logs"
    work.mkdir()
    logs.mkdir(mode=0o700)
    for directory in (work, *work.parents):
        directory.chmod(0o777 if directory == work else directory.stat().st_mode | 0o055)
    write(work, imported="MORE = {'uid': os.getuid()}")
    arguments = ("--preload", "--workers", "2", "--user", "nobody", "--log-file", str(logs / "log"))
    with running("app:app", *arguments, "--log-level", "debug", directory=work) as server:
        assert {w["uid"] for w in workers(server)} != {0}
        killed_and_replaced(server, 2)
        assert len(imports(server)) == 1
        assert server.stop() == 0


# ---- the application


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_after_fork_is_called_in_forked_workers_before_their_lifespan(project: Path, kind: str) -> None:
    imported = f"""
from serve_asgi import after_fork
MORE = {{"called": []}}

@after_fork
{kind} reopen():
    MORE["called"].append(os.getpid())
"""
    write(project, imported=imported)
    for preload in ("on", "off"):
        (project / "workers").unlink(missing_ok=True)
        with running("app:app", "--workers", "2", f"--preload={preload}", directory=project) as server:
            wanted: Callable[[int], list[int]] = (lambda pid: [pid]) if preload == "on" else (lambda pid: [])
            assert [w["called"] for w in workers(server)] == [wanted(w["pid"]) for w in workers(server)]
            assert server.stop() == 0


@pytest.mark.once
def test_an_after_fork_that_raises_fails_the_start(project: Path) -> None:
    with running("app:app", "--preload", directory=project) as server:
        write(project, imported="from serve_asgi import after_fork\n\n@after_fork\ndef reopen():\n    1 / 0\n")
        with pytest.raises(RequestRefused, match="the after_fork function reopen failed") as refused:
            server.reload()
        assert "ZeroDivisionError" in refused.value.detail
        assert "app.py" in refused.value.detail
        assert server.stop() == 0


def test_messages_shared_state_and_schedules_are_registered_at_import(project: Path) -> None:
    imported = """
from serve_asgi import agent, messenger, schedule, shared
MORE = {"agent": agent.here, "got": []}

@messenger.on("topic")
async def take(message):
    MORE["got"].append(message.payload)

@schedule(every="1h", name="hourly")
async def hourly():
    pass
"""
    write(project, imported=imported, startup="MORE['n'] = await shared.incr('n')")
    with running("app:app", "--preload", "--workers", "2", directory=project) as server:
        assert sorted(w["n"] for w in workers(server)) == [1, 2]
        assert not any(w["agent"] for w in workers(server))
        assert "hourly" in json.dumps(control_client.ask(server.control, "schedules"))
        write(project, imported=imported + "\nshared.get('n')\n")
        with pytest.raises(RequestRefused) as refused:
            server.reload()
        assert "use them in the lifespan, or in a function with @after_fork" in refused.value.detail
        assert server.stop() == 0


def test_a_child_that_a_forked_worker_forks_is_no_worker(project: Path) -> None:
    startup = """
        pid = os.fork()
        if pid == 0:
            links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if int(n) > 2
                     and os.path.exists(f"/proc/self/fd/{n}")]
            open("child", "w").write(json.dumps(links))
            os._exit(0)
        os.waitpid(pid, 0)
"""
    write(project, startup=startup.strip())
    found = []
    for preload in ("off", "on"):
        with running("app:app", f"--preload={preload}", directory=project) as server:
            links = json.loads((project / "child").read_text())
            found.append(sorted(link.partition(":")[0] for link in links))
            assert server.stop() == 0
    assert "socket" not in found[1]
    assert found[0] == found[1]


@pytest.mark.parametrize("preload", ["off", "strict"])
def test_a_policy_a_handler_and_a_context_of_the_import_hold_in_workers(project: Path, preload: str) -> None:
    first = """
import asyncio, contextvars, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)

class Policy(type(asyncio.get_event_loop_policy())):
    pass

asyncio.set_event_loop_policy(Policy())
signal.signal(signal.SIGUSR1, lambda *_: None)
variable = contextvars.ContextVar("variable")
variable.set("of the import")
MORE = {}

from serve_asgi import messenger

@messenger.on("told")
async def told(message):
    with open("told", "a") as file:
        file.write(variable.get("nothing"))
"""
    startup = (
        "await messenger.broadcast('told'); "
        "MORE.update(policy=type(asyncio.get_event_loop_policy()).__name__, variable=variable.get(None),"
        " handler=signal.getsignal(signal.SIGUSR1).__name__)"
    )
    write(project, first=first, startup=startup)
    with running("app:app", f"--preload={preload}", "--loop", "asyncio", directory=project) as server:
        (worker,) = workers(server)
        until(lambda: (project / "told").exists() and (project / "told").read_text() == "of the import")
        assert (worker["policy"], worker["variable"], worker["handler"]) == ("Policy", "of the import", "<lambda>")
        assert server.stop() == 0


# ---- what is shown of it


@pytest.mark.once
def test_status_and_metrics_show_the_template(project: Path) -> None:
    with running("app:app", "--preload", "--workers", "2", *ADMIN, directory=project) as server:
        (shown,) = server.status()["templates"]
        assert (shown["generation"], shown["state"]) == (1, "ready")
        assert shown["rss"] > 1_000_000
        name = "serve_template_resident_memory_bytes"
        metrics = wait_for(admin_address(server), lambda found: any(each[0] == name for each in found))
        assert value(metrics, name, generation="1") > 1_000_000
        assert len(server.workers()) == 2
        assert server.stop() == 0


# ---- the option


@pytest.mark.once
def test_a_reload_turns_it_on_and_off(project: Path) -> None:
    (project / "serve.toml").write_text("preload = false\n")
    with running("app:app", "--workers", "2", directory=project) as server:
        for said, count in (("true", 3), ("false", 5)):
            (project / "serve.toml").write_text(f"preload = {said}\n")
            server.reload()
            assert len(imports(server)) == count
        assert server.stop() == 0


@pytest.mark.once
def test_the_option_may_stand_alone_before_the_application(project: Path) -> None:
    command = (sys.executable, "-m", "serve_asgi", "--preload")
    with running("app:app", "--workers", "2", directory=project, command=command) as server:
        assert len(imports(server)) == 1
        assert server.stop() == 0


@pytest.mark.once
@pytest.mark.parametrize(("said", "count"), [("true", 1), ('"strict"', 1), ("false", 2)])
def test_the_option_in_a_file(project: Path, said: str, count: int) -> None:
    (project / "serve.toml").write_text(f"preload = {said}\n")
    with running("app:app", "--workers", "2", directory=project) as server:
        assert len(imports(server)) == count
        assert server.stop() == 0
