"""The table of a run of `loadtest.canary`. Pure: it gets a result and gives a string."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from loadtest.canary import CanaryResult, Deploy
from loadtest.canary_versions import FAULTS
from loadtest.ledger import Entry
from loadtest.report import columns, number

SHARES = ("keep-alive", "idle keep-alive", "one-shot")
"""Kinds of load whose share on the canary is told: connections that stay, that are mostly idle, that are all new."""
BEGINNING = 1.0
"""Seconds of a trial that do not count for the share: the canary is handed its connections in them."""


def table(result: CanaryResult, *, verbose: bool = False) -> str:
    """Everything that a run has found."""
    settings = result.settings
    seconds = result.ended - result.began
    title = (
        f"canary · {settings.workers} workers · {settings.http} · {settings.loop} · "
        f"{f'behind {settings.behind} · ' if settings.behind else ''}{'TLS 1.3 · ' if settings.tls else ''}"
        f"{len(result.deploys)} deploys in {seconds:.0f} s · {result.accounts.sent / seconds:.0f} requests/s"
    )
    lines = [title, "", *columns(rows(result)), "", shares(result), verdict(result)]
    if result.crashed or result.crashed_connections:
        crashed = sum(each.fault is not None and each.fault.name == "crash" for each in result.deploys)
        lines.append(
            f"  {crashed} crashes took {number(len(result.crashed))} requests in flight in these processes and "
            f"{number(len(result.crashed_connections))} kept connections with them"
        )
    causes = Counter(f"{e.kind}: {e.cause.value if e.cause else ''} {e.detail}".strip() for e in result.lost)
    lines += [f"  lost: {count} {what}" for what, count in causes.most_common(10)]
    lines += [f"  e.g. {e.number} at {e.done - result.began:.2f} s, {near(result, e)}" for e in result.lost[:10]]
    ends = Counter((each.kind, each.left.value) for each in result.reconnects)
    lines += [f"  {count} kept connections of {kind} ended by {how}" for (kind, how), count in ends.most_common()]
    lines += [f"  judged wrongly: {described(result, each)}" for each in result.wrong]
    lines += [f"  problem: {problem}" for problem in result.problems]
    if verbose:
        lines += [f"  {described(result, each)}" for each in result.deploys]
    return "\n".join(lines)


def rows(result: CanaryResult) -> list[list[str]]:
    """One row for each way of being bad, and one for the good versions."""
    rows = [["version", "deploys", "taken back", "after s", "answers", "errors", "most", "promised"]]
    for fault in (*FAULTS, None):
        mine = [deploy for deploy in result.deploys if deploy.fault is fault]
        if not mine:
            continue
        after = median(each.decided - each.on_trial for each in mine)
        answers = median(len(result.answered_by(each)) for each in mine)
        errors = [len(result.failed_by(each)) for each in mine]
        taken_back = sum(each.taken_back for each in mine)
        promised = fault.promised if fault is not None else None
        row = [fault.name if fault else "good", str(len(mine)), str(taken_back), f"{after:.2f}", f"{answers:.0f}"]
        rows.append([*row, f"{median(errors):g}", str(max(errors)), "" if promised is None else str(promised)])
    return rows


def shares(result: CanaryResult) -> str:
    """The share of the answers that good versions gave on trial, by kind of load."""
    ours, all_of = Counter[str](), Counter[str]()
    for deploy in result.deploys:
        if deploy.fault is None and deploy.on_trial:
            for entry in result.ledger.entries:
                if entry.pid and deploy.on_trial + BEGINNING <= entry.done <= deploy.decided:
                    all_of[entry.kind] += 1
                    ours[entry.kind] += entry.generation == deploy.generation
    told = [f"{kind} {ours[kind] / all_of[kind]:.0%}" for kind in SHARES if all_of[kind]]
    told.append(f"all {ours.total() / max(1, all_of.total()):.0%}")
    return f"the canary's share of the answers, {1 / (result.settings.workers + 1):.0%} meant: {', '.join(told)}"


def verdict(result: CanaryResult) -> str:
    """The sentence that matters."""
    bad = [each for each in result.deploys if each.fault is not None]
    good = [each for each in result.deploys if each.fault is None]
    return (
        f"{number(len(result.lost))} lost, {number(len(result.accounts.duplicated))} duplicated, "
        f"{number(len(result.reconnects))} keep-alive reconnects; "
        f"{sum(each.taken_back for each in bad)} of {len(bad)} bad versions taken back, "
        f"{sum(each.taken_back for each in good)} of {len(good)} good ones; "
        f"{number(result.accounts.failed)} of {number(result.accounts.sent)} requests failed by bad versions: "
        + ("nothing else was noticed" if result.spotless else "NOT SPOTLESS")
    )


def described(result: CanaryResult, deploy: Deploy) -> str:
    """One deploy in a line."""
    name = deploy.fault.name if deploy.fault else "good"
    end = "taken back" if deploy.taken_back else "promoted"
    return (
        f"deploy {deploy.number} ({name}) at {deploy.began - result.began:.1f} s: {end} "
        f"{deploy.decided - deploy.on_trial:.2f} s after the trial began: {deploy.reason}; "
        f"{len(result.failed_by(deploy))} errors"
    )


def near(result: CanaryResult, entry: Entry) -> str:
    """What was going on when a request was lost."""
    before: Sequence[Deploy] = [each for each in result.deploys if each.began <= entry.done]
    if not before:
        return "before the first deploy"
    deploy = before[-1]
    name = deploy.fault.name if deploy.fault else "good"
    at = entry.done - deploy.decided if deploy.decided and entry.done > deploy.decided else entry.done - deploy.on_trial
    what = "after its verdict" if deploy.decided and entry.done > deploy.decided else "after its trial began"
    return f"{at:.2f} s {what} ({name}, deploy {deploy.number}); sent {entry.done - entry.sent:.2f} s before"
