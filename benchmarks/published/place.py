"""What every published figure says of where it stands."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Place(BaseModel):
    """
    Attributes:
        source: whose, and where.
        quote: its words or table row.
        note: what was not stated and is assumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    url: str = Field(min_length=1)
    quote: str = Field(min_length=1)
    note: str | None = None
