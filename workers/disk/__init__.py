"""Experts on a disk: read past the page cache when they are needed, into a cache of fixed size."""
