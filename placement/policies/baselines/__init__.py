"""Policies to compare with: what other engines do (docs/policies.md)."""
