"""A text's routing replayed through a plan: how long each step takes, and why."""
