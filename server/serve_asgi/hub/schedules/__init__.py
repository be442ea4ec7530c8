"""Schedules, as the hub decides them: each tick once."""
