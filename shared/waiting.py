"""How a site waits for messages: a pull that says it would wait may be held back by the gateway until there is one.

Flower's pull answers at once, so that waiting means asking again and again, at 10 ms of the server's processor each
time. A site that would wait says for how long in a header; a gateway that can hold requests says so in its answer. One
that can't (a stock SuperLink) ignores the header, and the site asks again: often while a run goes on, seldom otherwise.
"""

WAIT_HEADER = "astrofed-wait"
"""In a request to pull messages: for how many seconds at most its answer may be held back."""
HELD_HEADER = "astrofed-held"
"""In the answer: the gateway holds requests back; there is no need to wait before asking again."""
LONGEST_WAIT_S = 20.0
"""No request is held back for longer: proxies and firewalls close connections on which nothing moves."""
