"""The strict load test: it never retries, never forgives and hides nothing.

`python -m loadtest.reload` sends HUPs to one server under mixed load and prints one table, `python -m loadtest.peers`
does the same for several servers, `python -m loadtest.latency` compares the latency during reloads with a control.
See docs/measured/loadtest.md for what is counted and how.
"""
