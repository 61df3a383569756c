"""Counts of served tokens: who comes anew, who leaves, who comes back."""

from __future__ import annotations

from orchestrator.scheduling.client_shares import ClientShares


def test_who_comes_anew_is_owed_nothing() -> None:
    shares = ClientShares()
    for client in ("ada", "ben"):
        shares.enter(client)
    shares.charge("ada", 900)
    shares.charge("ben", 700)
    shares.enter("cleo")
    assert [shares.served(client) for client in ("ada", "ben", "cleo")] == [900, 700, 700]


def test_who_leaves_and_comes_back_has_not_forgotten_what_it_got() -> None:
    shares = ClientShares()
    for client in ("ada", "ben"):
        shares.enter(client)
    shares.charge("ada", 500)
    shares.leave("ada")
    shares.enter("ada")
    assert shares.served("ada") == 500


def test_who_left_is_forgotten_when_that_changes_nothing() -> None:
    shares = ClientShares()
    for client in ("ada", "ben", "cleo"):
        shares.enter(client)
    shares.charge("ada", 500)
    shares.leave("ada")
    assert shares.served("ada") == 500
    for client in ("ben", "cleo"):
        shares.charge(client, 600)
    shares.leave("cleo")
    assert shares.served("ada") == 0
    shares.enter("ada")
    # What it would have had without being remembered.
    assert shares.served("ada") == 600
    shares.leave("ada")
    shares.leave("ben")
    assert shares.served("ben") == 0


def test_a_client_leaves_with_its_last_request() -> None:
    shares = ClientShares()
    shares.enter("ada")
    shares.enter("ada")
    shares.charge("ada", 5)
    shares.leave("ada")
    assert set(shares.clients) == {"ada"}
    shares.charge("ada", 5)
    assert shares.served("ada") == 10
    shares.leave("ada")
    shares.charge("ada", 5)
    assert shares.served("ada") == 0
