"""Colours that colour-blind readers tell apart too (Okabe and Ito, Color Universal Design, 2008)."""

from __future__ import annotations

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
