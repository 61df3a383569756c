"""The least-time search: blocks of like heat, then single experts, copies and kicks (docs/planner.md)."""
