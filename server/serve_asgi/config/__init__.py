"""The options: each defined once, where their values come from, and what is said about each mistake."""
