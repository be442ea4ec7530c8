"""The plans of all generations that are alive, and how that of the next one is made: by a reload, asking its hooks.

The plan that is upcoming becomes that of a generation when the generation begins, and the server's own (`settings`)
when it serves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError
from serve_asgi.listener.generation_plan import GenerationConfig, resolve_anew
from serve_asgi.listener.helper_processes import HelperProcesses
from serve_asgi.listener.history import Record
from serve_asgi.listener.hooks import Hooks, trouble_at_reload
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Generation

log = logging.getLogger("serve")


class GenerationConfigs:
    """Those of one listener."""

    def __init__(
        self, plan: GenerationConfig, start_directory: str, begun: Mapping[Generation, GenerationConfig]
    ) -> None:
        """`plan` is that of the generation that begins, or serves already; `begun` are all that have begun before."""
        self.settings = plan.settings
        """What the current generation was made with."""
        self.all = dict(begun)
        self._upcoming = plan
        self._start_directory = start_directory

    def of(self, generation: Generation | None) -> GenerationConfig | None:
        """The plan of a generation that is alive."""
        return self.all.get(generation) if generation is not None else None

    def release_of(self, current: Generation | None) -> Release | None:
        """What the current generation runs on, or will."""
        plan = self.of(current) if current is not None else self._upcoming
        return plan.release if plan is not None else None

    def begin(self, generation: Generation) -> None:
        """It is made with the plan that is upcoming."""
        self.all[generation] = self._upcoming

    def adopt(self, generation: Generation) -> Settings:
        """It serves: its settings are the server's own; return those that were so before."""
        before, self.settings = self.settings, self.all[generation].settings
        return before

    def forget(self, generation: Generation) -> bool:
        """No process of it is left. Whether it was to have an agent."""
        plan = self.all.pop(generation, None)
        return plan is not None and bool(plan.settings.config.agent)

    async def prepare(
        self, by: str, current: Generation | None, hooks: Hooks, processes: HelperProcesses
    ) -> e.ReloadPrepared:
        """Read the configuration again and ask the hooks, each within its deadline; then the reload begins, or not."""
        trouble, detail = "", ""
        try:
            plan = await resolve_anew(self.settings, self._start_directory)
            if plan.settings.config.hook:
                trouble, detail = await _ask_before_reload(plan, by, current, hooks, processes)
            if not trouble:
                self._upcoming = plan
                return e.ReloadPrepared(plan.policy)
        except UsageError as error:
            trouble = str(error)
        except Exception as error:
            log.exception("the reload could not be prepared")
            trouble = f"it could not be prepared: {error!r}"
        return e.ReloadPrepared(None, trouble, detail)


async def _ask_before_reload(
    plan: GenerationConfig, by: str, current: Generation | None, hooks: Hooks, processes: HelperProcesses
) -> tuple[str, str]:
    """Look whether the hooks of the new configuration are there, and run those before a reload."""
    config = plan.settings.config
    trouble, detail = await trouble_at_reload(config, plan.release, processes)
    if trouble:
        return trouble, detail
    record: Record = {"at": round(time.time(), 3), "level": "info", "event": "pre_reload", "by": by}
    record |= {"text": "the server is about to reload", "generation": current.number if current else 0}
    return await hooks.before("pre_reload", record, config, plan.release)
