"""How a hook is written, and which events it is for, as tables."""

from __future__ import annotations

import pytest

from serve_asgi.config.hook_events import read_hook


@pytest.mark.parametrize(
    ("text", "event", "arguments"),
    [
        ("post_reload=notify --to 'a b'", "post_reload", ("notify", "--to", "a b")),
        (" pre-stop = x=1 ", "pre_stop", ("x=1",)),
        ("worker_died=hooks.chat:tell", "worker_died", ()),
        ("server_started=C:/x", "server_started", ("C:/x",)),
    ],
)
def test_how_a_hook_is_written(text: str, event: str, arguments: tuple[str, ...]) -> None:
    hook = read_hook(text)
    assert (hook.event, hook.arguments) == (event, arguments)


def test_names_of_hooks_and_of_the_log() -> None:
    assert read_hook("post_reload=x").wants("reload_finished")
    assert read_hook("reload_finished=x").wants("reload_finished")
    assert read_hook("worker_recycled=x").wants("worker_recycled")
    assert not read_hook("post_stop=x").wants("stop_started")


def test_a_hook_is_a_command_or_a_callable_and_shown_as_it_was_written() -> None:
    command, function = read_hook("post_reload=notify --now"), read_hook("post_reload=app.hooks:notify")
    assert (command.is_callable, function.is_callable) == (False, True)
    assert str(command) == "hook post_reload=notify --now"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("post_reload", "is not a hook: write EVENT=COMMAND"),
        ("=x", "is not a hook: write EVENT=COMMAND"),
        ("post_reload=", "is not a hook: write EVENT=COMMAND"),
        ("post_reloaded=x", "hooks know no event 'post_reloaded': did you mean post_reload?"),
        ("zzz=x", "hooks know no event 'zzz': docs/guides/hooks.md lists all of them"),
        ("post_reload='x", "the command of the hook post_reload cannot be read: no closing quotation"),
    ],
)
def test_a_mistake_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="hook") as caught:
        read_hook(text)
    assert sentence in str(caught.value)
