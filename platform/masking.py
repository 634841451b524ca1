"""Passwords and tokens of addresses, kept out of all that is shown or written."""

import re

# user:password@ of an address; greedy, as a password may hold an @ or a slash that nobody encoded
_USER = re.compile(r"://(?!/)\S*@|(?<![\w.-])[^\s:/@'\"(]+:(?!/)[^\s/@]+@")
_SECRET = re.compile(
    r"([?&;#][\w.-]*(?:pass|pwd|token|secret|key|sig|cred|auth)[\w.-]*=)[^\s&;#'\")]+", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with *** in place of what an address in it says before its @, and of the values of query
    parameters whose names speak of secrets: `http://***@host/?token=***`.
    """
    hidden = _USER.sub(lambda found: "://***@" if found[0].startswith("://") else "***@", text)
    return _SECRET.sub(r"\1***", hidden)
