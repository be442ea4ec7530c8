"""Where the code of a release comes from: every path by which a server finds it, before and after links are followed.

It owns the order of these paths, which of them has the application, and whether they lead elsewhere by now. `serve
deploy` and `serve rollback` look in them for the link to switch, and the list of deploys names the one with the code.
It knows nothing of deploys.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping

from serve_asgi.config.application_name import holds
from serve_asgi.config.options import Config
from serve_asgi.config.values import read_static

PYTHONPATH = "PYTHONPATH"


@dataclasses.dataclass(frozen=True, slots=True)
class MovedLink:
    """A link through which the server has found its code, and which leads elsewhere by now."""

    link: str
    leads_to: str
    """The directory or file that it leads to."""
    serves: str
    """What it led to when the generation that serves was started."""

    def __str__(self) -> str:
        return f"{self.link} leads to {self.leads_to}, but {self.serves} serves: a restart would start {self.leads_to}"


def moved_link(places: Mapping[str, str]) -> MovedLink | None:
    """The first link in `places` (as below) that would have a restart find other code; None if there is none.

    It reads links, and nothing else, from the disk.
    """
    for name, resolved in places.items():
        now = os.path.realpath(name)
        if now == resolved:
            continue
        for link in filter(os.path.islink, upwards(name)):
            leads_to, rest = os.path.realpath(link), name[len(link) :]
            serves = resolved.removesuffix(rest)
            if leads_to + rest == now and serves + rest == resolved and serves != leads_to:
                return MovedLink(link, leads_to, serves)
    return None


def upwards(path: str) -> Iterator[str]:
    """A path and all directories above it, but for the root."""
    while path not in ("/", ""):
        yield path
        path = os.path.dirname(path)


def resolved_pythonpath(environment: Mapping[str, str], directory: str) -> str:
    """PYTHONPATH with links resolved, so that a worker that replaces another one imports the code of its own release.

    `directory` is the working directory of the workers, where relative entries begin.
    """
    entries = environment.get(PYTHONPATH, "").split(os.pathsep)
    return os.pathsep.join(os.path.realpath(os.path.join(directory, each)) for each in entries)


def places(
    config: Config, start_directory: str, environment: Mapping[str, str], python: str, file: str
) -> dict[str, str]:
    """Each path by which the server finds its code or its configuration, and where it leads; the most telling first.

    `environment` is the workers' own as it was given, `python` the path of the interpreter, `file` that of the
    configuration file ("": none).
    """
    directory = os.path.join(start_directory, config.chdir)
    named = [os.path.join(directory, config.app_dir), directory]
    named += [os.path.join(directory, each) for each in environment.get(PYTHONPATH, "").split(os.pathsep) if each]
    named.append(os.path.dirname(os.path.join(start_directory, python)))
    named += [os.path.join(start_directory, each) for each in (config.env_file, file) if each]
    named += [os.path.join(directory, each) for _, each in map(read_static, config.static)]
    return {os.path.normpath(each): os.path.realpath(each) for each in named}


def code_directory(config: Config, directory: str, app_dir: str, pythonpath: str) -> str:
    """The directory that has the application's module; the working directory if none of those that were named has it,
    as for an installed package. All paths are resolved."""
    module = config.app.partition(":")[0]
    for place in (app_dir, *pythonpath.split(os.pathsep)):
        if place and holds(place, module):
            return directory if os.path.commonpath([place, directory]) == directory else place
    return directory
