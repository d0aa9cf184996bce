"""The guard: who is refused, with what, in which order; all of it by the request's head alone."""

from __future__ import annotations

import pytest

from ssai3d_rt.runtime.guard import PATHS, Door, allowed_hosts, digest_of, is_loopback

TOKEN = "correct-horse-battery"
HERE = Door(allowed_hosts("127.0.0.1"), digest_of(TOKEN))
OUTSIDE = Door(allowed_hosts("10.0.0.7", ("Rig7.lab",)), digest_of(TOKEN), private=True)
BEARER = {"authorization": f"Bearer {TOKEN}"}

CASES: dict[str, tuple[Door, str, str, dict[str, str], int | None]] = {
    "plain": (HERE, "GET", "/live", {}, None),
    "other port": (HERE, "GET", "/live", {"host": "localhost:81"}, None),
    "ipv6": (HERE, "GET", "/live", {"host": "[::1]:9108"}, None),
    "upper case": (HERE, "GET", "/live", {"host": "LOCALHOST"}, None),
    "rebinding": (HERE, "GET", "/live", {"host": "evil.example"}, 421),
    "rebinding a subdomain": (HERE, "GET", "/live", {"host": "localhost.evil.example"}, 421),
    "user in host": (HERE, "GET", "/live", {"host": "localhost@evil.example"}, 421),
    "no host": (HERE, "GET", "/live", {"host": ""}, 421),
    "no port": (HERE, "GET", "/live", {"host": "localhost:"}, 421),
    "host before all": (HERE, "DELETE", "/nothing", {"host": "evil.example"}, 421),
    "unknown path": (HERE, "GET", "/etc/passwd", {}, 404),
    "absolute path": (HERE, "GET", "http://evil.example/live", {}, 404),
    "method": (HERE, "DELETE", "/live", {}, 405),
    "method of write": (HERE, "GET", "/submit", BEARER, 405),
    "method before origin": (HERE, "PUT", "/status.json", {"origin": "http://evil.example"}, 405),
    "probe from a page": (HERE, "GET", "/metrics", {"origin": "http://evil.example"}, None),
    "status from a page": (HERE, "GET", "/status.json", {"origin": "http://evil.example"}, 403),
    "status from nowhere": (HERE, "GET", "/status.json", {"origin": "null"}, 403),
    "status of our page": (HERE, "GET", "/status.json", {"origin": "http://127.0.0.1:9108"}, None),
    "another port's page": (HERE, "GET", "/status.json", {"origin": "http://127.0.0.1:8080"}, 403),
    "cross site": (HERE, "GET", "/status.json", {"sec-fetch-site": "cross-site"}, 403),
    "same site": (HERE, "GET", "/", {"sec-fetch-site": "same-site"}, 403),
    "same origin": (HERE, "GET", "/", {"sec-fetch-site": "same-origin"}, None),
    "typed in": (HERE, "GET", "/", {"sec-fetch-site": "none"}, None),
    "foreign write with the token": (HERE, "POST", "/submit", {**BEARER, "origin": "http://evil.example"}, 403),
    "write": (HERE, "POST", "/submit", BEARER, None),
    "write without token": (HERE, "POST", "/submit", {}, 401),
    "wrong token": (HERE, "POST", "/submit", {"authorization": f"Bearer {TOKEN}x"}, 401),
    "wrong scheme": (HERE, "POST", "/submit", {"authorization": f"Basic {TOKEN}"}, 401),
    "empty token": (HERE, "POST", "/submit", {"authorization": "Bearer "}, 401),
    "status with a wrong token": (HERE, "GET", "/status.json", {"authorization": "Bearer no"}, 401),
    "token where there is none": (Door(allowed_hosts("::1"), None), "GET", "/status.json", BEARER, 403),
    "write where there is none": (Door(allowed_hosts("::1"), None), "POST", "/submit", BEARER, 403),
    "too large": (HERE, "POST", "/submit", {**BEARER, "content-length": "65537"}, 413),
    "largest": (HERE, "POST", "/submit", {**BEARER, "content-length": "65536"}, None),
    "no length": (HERE, "POST", "/submit", {**BEARER, "content-length": "-1"}, 400),
    "two lengths": (HERE, "POST", "/submit", {**BEARER, "content-length": "3", "transfer-encoding": "chunked"}, 400),
    "outside, probe": (OUTSIDE, "GET", "/ready", {"host": "10.0.0.7:9108"}, None),
    "outside, name": (OUTSIDE, "GET", "/ready", {"host": "rig7.lab"}, None),
    "outside, status": (OUTSIDE, "GET", "/status.json", {"host": "rig7.lab"}, 401),
    "outside, metrics": (OUTSIDE, "GET", "/metrics", {"host": "rig7.lab"}, 401),
    "outside, with token": (OUTSIDE, "GET", "/metrics", {"host": "rig7.lab", **BEARER}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_refusals(name: str) -> None:
    door, method, path, headers, status = CASES[name]
    refused = door.refusal(method, path, {"host": "127.0.0.1:9108"} | headers)
    assert (refused.status if refused else None) == status


def test_only_submitting_changes_anything() -> None:
    assert [path for path, methods in PATHS.items() if not methods <= {"GET", "HEAD"}] == ["/submit"]


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)]
    + [(text, False) for text in ("0.0.0.0", "::", "10.0.0.7", "rig7.lab", "")],
)
def test_which_addresses_are_this_machine_s_own(address: str, own: bool) -> None:
    assert is_loopback(address) is own


def test_every_address_at_once_is_no_name() -> None:
    assert allowed_hosts("0.0.0.0") == allowed_hosts("::") == {"localhost", "127.0.0.1", "[::1]"}
    assert "[fe80::1]" in allowed_hosts("FE80::1")
