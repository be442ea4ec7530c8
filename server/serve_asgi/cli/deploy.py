"""`serve deploy`: switch the link to a release, reload, and switch it back unless the release serves in the end.

So the link always leads to code that a server may be started with: the one that serves, or, while a reload or a trial
is under way, the one that is to. The listener reloads; if this command is interrupted, it has the reload given up.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.cli import control_client, release_link
from serve_asgi.cli.command import as_json, command, complain, failed_as_json, tell
from serve_asgi.cli.control_client import PATIENCE, RequestRefused
from serve_asgi.cli.release_link import ReleaseLink
from serve_asgi.cli.reload import TRIAL, followed, trial_wish
from serve_asgi.config.accounts import own_name
from serve_asgi.errors import ServeError, UsageError

LOOK: Final = 0.5
"""Seconds between two looks while the switch is watched (`--auto-rollback` of the server)."""
FEWEST: Final = 2
"""Releases that are kept at least: the one that serves, and the one before it, for a roll-back."""


def deploy(
    control: str,
    pid_file: str,
    release: str,
    link: str,
    keep: int | None,
    retired: bool,
    canary: str | None,
    no_canary: bool,
    trial: float | None,
    hold: bool | None,
    as_json: bool,
) -> int:
    """Deploy a release directory: point the link `current` to it, reload, and wait until it serves.

    The link is the one through which the server finds its code (docs/guides/releases.md). If the reload is refused, if
    a canary is taken back, or if this command is interrupted, the link points to the earlier release again, so that a
    restart of the node starts the code that serves. With --auto-rollback of the server this waits until the switch is
    not watched any more.

    --keep removes older releases that were deployed with this command, but for so many. The trial of a canary is as
    for `serve reload`.

    Exit status 0: the release serves. 1: it was refused or taken back, with the reason; the old one serves on. 2: wrong
    usage, or another deploy is under way.
    """
    try:
        path = control_client.find(control, pid_file)
        wish = trial_wish(canary, no_canary, trial, hold)
        directory = os.path.realpath(release)
        _check(release, directory)
        if not (places := control_client.look(path).get("places")):  # of an earlier version
            raise UsageError(
                "the server does not say by which paths it finds its code: run `serve reload --listener` and `serve "
                "reload` first"
            )
        found = release_link.find(link, directory, places)
        with found.locked():
            return ReleaseDeploy(path, found, directory, keep, as_json=as_json).run(wish, retired=retired)
    except (RequestRefused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise


def _check(release: str, directory: str) -> None:
    """Raises UsageError unless `release`, which leads to `directory`, is a directory that can be read."""
    try:
        is_directory = stat.S_ISDIR(os.stat(directory).st_mode)
        readable = os.access(directory, os.R_OK | os.X_OK)
    except PermissionError:
        is_directory, readable = True, False
    except OSError:
        is_directory = False
    if not is_directory:
        raise UsageError(f"{release} is not a directory: give the one of the release")
    if not readable:
        raise UsageError(
            f"user {own_name()} may not read {release}: run this as the server's user or as root, and let the server's "
            "user read the release"
        )


class ReleaseDeploy:
    """One deploy of a release, under the lock of its link."""

    def __init__(self, path: Path, link: ReleaseLink, release: str, keep: int | None, *, as_json: bool) -> None:
        self._path = path
        self._link = link
        self._release = release
        self._keep = keep
        self._as_json = as_json
        found = control_client.look(path)
        self._generation = found["generation"]
        self._linked = link.release
        serving = link.serving(found["places"])
        if not os.path.isdir(serving):
            serving = ""
        self._before = serving or self._linked
        """What the link leads to unless the release serves: what serves, also if the link was switched by hand."""
        self._target_before = link.target if self._before == self._linked else link.text_for(self._before)
        self._done = False
        self._watched = False
        """The server may still roll the release back by itself."""

    def run(self, wish: dict[str, Any], *, retired: bool) -> int:
        """Deploy; return the exit status. Raises RequestRefused if the release does not serve."""
        try:
            if self._release != self._linked:
                self._point_to(self._link.text_for(self._release), "link_switched")
            wish = {**wish, "deploy": True}
            status = followed(self._path, "reload", wish, retired=retired, as_json=self._as_json, settle=self._settle)
            if not self._as_json:
                self._prune()
            return status
        except BaseException as error:
            if not self._done and not self._ended_otherwise(error):
                self._take_back()
                if self._release != self._before:
                    self._remember(self._link.refused, self._before, self._release)
            raise

    def _settle(self, response: dict[str, Any]) -> None:
        """The reload has ended. Raises RequestRefused if the release does not serve in the end."""
        control_client.checked(response)
        self._watch()
        self._done = True
        self._remember(self._link.deployed_last, self._before, self._release)
        if self._as_json:  # whose last object is the outcome
            self._prune()

    def _prune(self) -> None:
        """Remove older releases; for people after the outcome, since it may take long."""
        if self._keep is not None:
            removed, troubles = self._link.prune(self._keep)
            for each in troubles:
                complain(each)
            if removed:
                names = ", ".join(os.path.basename(each) for each in removed)
                self._step("releases_removed", f"removed older releases: {names}", paths=removed)

    def _watch(self) -> None:
        """Wait as long as the server watches the switch, if it does. Raises RequestRefused if it has rolled back.

        Whether it does is up to the new generation's options, and it may have rolled back before it is asked.
        """
        while True:
            found = control_client.look(self._path)
            if not self._serves(found):
                serving = self._link.serving(found["places"]) or found["release"]
                raise RequestRefused(f"rolled back, {serving} serves again: {self._why_rolled_back()}")
            if (left := found["switch_watched"]) is None:
                break
            if not self._watched:
                seconds = math.ceil(left)
                text = f"the server watches the switch for {seconds} s (--auto-rollback, --canary-time)"
                self._step("switch_watched", text, seconds=seconds)
                self._watched = True
            time.sleep(LOOK)
        self._watched = False

    def _why_rolled_back(self) -> str:
        """What the server says of the latest roll-back."""
        deploys = control_client.ask(self._path, "deploys", last=1, patience=PATIENCE)["deploys"]
        return next((each["text"] for each in deploys if each["text"]), "`serve deploys` shows by whom")

    def _serves(self, found: dict[str, Any]) -> bool:
        return self._link.serving(found["places"]) == self._release

    def _ended_otherwise(self, error: BaseException) -> bool:
        """Whether the release serves all the same: this command was interrupted too late, or another reload, which has
        superseded its own, has deployed it. One that is interrupted in time has the reload given up."""
        with contextlib.suppress(ServeError):
            found = control_client.look(self._path)
            if isinstance(error, KeyboardInterrupt | SystemExit) and _is_under_way(found):
                control_client.ask(self._path, "rollback", deploy=True, patience=PATIENCE)
            while _is_under_way(found := control_client.look(self._path)):
                time.sleep(LOOK)
            if found["generation"] != self._generation and self._serves(found):
                text = f"{self._release} serves all the same: `serve rollback` takes it back"
                if self._watched:
                    text += f"; if the server does so by itself (--auto-rollback), point {self._link.path} back by hand"
                complain(text)
                self._done = True
        return self._done

    def _take_back(self) -> None:
        """Have the link say what it has said before."""
        if self._link.target != self._target_before:
            self._point_to(self._target_before, "link_restored")

    def _remember(self, note: Callable[[str, str], None], before: str, release: str) -> None:
        try:
            note(before, release)
        except OSError as error:
            complain(f"the list of releases beside {self._link.path} cannot be written: {error.strerror}")

    def _point_to(self, target: str, event: str) -> None:
        self._link.point_to(target)
        self._step(event, f"{self._link.path} -> {target}", link=self._link.path, target=target)

    def _step(self, event: str, text: str, **about: Any) -> None:
        if self._as_json:
            tell(json.dumps({"at": round(time.time(), 3), "level": "info", "event": event, "text": text, **about}))
        else:
            tell(text)


def _is_under_way(found: dict[str, Any]) -> bool:
    """Whether a reload is."""
    return found["starting"] is not None or bool(found["reload_waiting"])


def follow_rollback(path: Path, *, as_json: bool) -> None:
    """After a roll-back, point the link to the release that serves again, if `serve deploy` has deployed it."""
    try:
        _follow_rollback(path, as_json=as_json)
    except ServeError as error:
        complain(f"the link to the release was left as it is: {error}")


def _follow_rollback(path: Path, *, as_json: bool) -> None:
    places = control_client.look(path).get("places", {})
    for link in release_link.kept(places):
        serving = link.serving(places)
        if serving and serving != link.release:
            with link.locked():
                link.point_to(target := link.text_for(serving))
            if not as_json:
                tell(f"{link.path} -> {target}")
            return


COMMANDS: Final = {
    "deploy": command(
        "deploy",
        deploy,
        click.Argument(["release"], metavar="RELEASE_DIR", type=click.Path(readable=False)),
        click.Option(
            ["--link"],
            metavar="PATH",
            type=click.Path(readable=False),
            default="",
            help="The link; by default the one in the server's paths that leads to a neighbour of RELEASE_DIR.",
        ),
        click.Option(
            ["--keep"],
            type=click.IntRange(min=FEWEST),
            metavar="NUMBER",
            help="Then remove older releases that were deployed by this command, but for so many.",
        ),
        click.Option(["--retired"], is_flag=True, help="Wait until the old workers have ended as well."),
        *TRIAL,
        as_json("One JSON object per step, the last one the outcome."),
    ),
}
