"""Which workers live: greetings, heartbeats, suspicion, death, return, and the views that follow."""
