"""What the hub counts, by name, with its meaning: the parts fill it in, the metrics and their page of the docs show it.

What ends in `_total` only grows, over reloads and over a replacement of the listener's program too.
"""

from __future__ import annotations

from typing import Final

METRICS: Final = {
    "messages_accepted_total": "Messages that processes of the application sent and the listener accepted.",
    "messages_delivered_total": "Copies of messages that were delivered to a process.",
    "messages_failed_total": "Copies whose handler raised.",
    "messages_redelivered_total": "Acknowledged messages delivered again: a process had died, or a handler raised.",
    "messages_dead_lettered_total": "Acknowledged messages that were given up after max_deliveries.",
    "messages_lost_total": "Copies that were lost with their process, or that no process handles.",
    "messages_waiting": "Copies that wait for a process.",
    "state_keys": "Keys in the shared state.",
    "state_size_bytes": "Size of the shared state: keys, values and 256 bytes for each, as --state-limit counts.",
    "state_changes_total": "Changes of the shared state.",
    "state_lagged_total": "Writes to the shared state that a process had not acknowledged in time.",
    "schedule_runs_total": "Runs of schedules that ended, whatever their outcome.",
    "schedule_failures_total": "Runs of schedules that raised, timed out, were cut or died with their process.",
    "schedule_missed_total": "Ticks of schedules that nothing ran for.",
    "schedules_running": "Runs of schedules in progress.",
}
