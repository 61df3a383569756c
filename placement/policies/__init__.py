"""Who decides where experts live: the planner's own search, and what it is compared with."""
