"""Tokens: made by the authority alone, for one name and a time, and no invites."""

from pathlib import Path

import pytest

from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.invite import Invite
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.privacy.keys import SigningKey

DAY = "2027-03-31"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", ["localhost"])


def test_a_token_survives_being_read() -> None:
    key = SigningKey.generate()
    token = Token.new("museum", b"certificate", DAY, key)
    read = Token.parse(token.code())
    assert read == token
    assert repr(token.secret) not in repr(token) and repr(token.grant) not in repr(token)
    read.check(key.public)
    read.check(key.public, DAY)
    with pytest.raises(EnrolmentError, match=f"ran out on {DAY}"):
        read.check(key.public, "2027-04-01")


def test_a_token_is_no_invite_and_an_invite_no_token() -> None:
    key = SigningKey.generate()
    with pytest.raises(EnrolmentError, match="not one that this federation's authority printed"):
        Token.parse(Invite.new("s1", b"certificate", DAY, key).code()).check(key.public)
    with pytest.raises(EnrolmentError, match="not the code that the authority printed"):
        Invite.parse(Token.new("s1", b"certificate", DAY, key).code()).check(key.public)
    with pytest.raises(EnrolmentError, match="not one that"):
        Token.new("museum", b"certificate", DAY, SigningKey.generate()).check(key.public)


def test_a_name_is_given_once(authority: Authority) -> None:
    authority.invite("s1")
    authority.token("museum")
    for name in ("s1", "museum"):
        with pytest.raises(EnrolmentError, match="was given to somebody before"):
            authority.token(name)
    with pytest.raises(EnrolmentError, match="is the name of a token"):
        authority.invite("museum")
    authority.revoke("museum")
    assert "museum" in authority.members().revoked
    with pytest.raises(EnrolmentError, match="was given to somebody before"):
        authority.token("museum")
    # As a site of that name it would be off the list of the revoked, and the token taken again.
    with pytest.raises(EnrolmentError, match="is the name of a token"):
        authority.invite("museum")
