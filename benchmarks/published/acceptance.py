"""How many drafts of Step-3.5-Flash hold."""

from __future__ import annotations

ACCEPTANCE = (0.889, 0.758, 0.687)
"""Share of drafts that hold with one draft a step, two and three (llama.cpp pull request 20981).

Read as each draft's chance to hold if those before it did, they give nearly the same tokens a step: 2.56 in
place of 2.52 with two drafts, 3.03 in place of 3.06 with three.
"""
