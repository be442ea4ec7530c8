"""The options: each defined once, where their values come from, and the error for each mistake."""
