"""Schedules, as the hub grants their ticks: each once."""
