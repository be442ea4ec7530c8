"""Schedules, as the hub decides their ticks: each once."""
