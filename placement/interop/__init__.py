"""Routing statistics that other engines write, and placements that they read (docs/interop.md)."""
