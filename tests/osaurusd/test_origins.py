"""Origin patterns: which origins they match, and which patterns are invalid."""

import pytest

from osaurusd import origins


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://chat.example", "https://chat.example"),
        ("HTTPS://Chat.Example", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://chat.example:80", "http://chat.example"),
        ("http://chat.example:443", "http://chat.example:443"),
        ("http://192.168.1.5:3000", "http://192.168.1.5:3000"),
        ("http://[fd00::1]:3000", "http://[fd00::1]:3000"),
        ("https://*.example.org", "https://a.example.org"),
        ("https://*.example.org", "https://a-b_1.example.org"),
        ("https://*.example.org:8443", "https://a.example.org:8443"),
        ("vscode-webview://*", "vscode-webview://1a2b3c-4d"),
        ("app://*", "app://obsidian"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://*.md", "app://obsidian.md"),
        ("app://-", "app://-"),
        ("app://.", "app://."),
        ("app://", "app://"),
        ("tauri://localhost", "tauri://localhost"),
        ("http://tauri.localhost", "http://tauri.localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("file://", "file://"),
        ("null", "null"),
    ],
)
def test_pattern_matches_its_origins(pattern, origin):
    assert origins.is_allowed(origin, [pattern])


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://chat.example", "http://chat.example"),
        ("https://chat.example", "https://chat.example:8443"),
        ("https://chat.example", "https://chat.example/"),
        ("https://chat.example", "https://chat.example."),
        ("https://chat.example", "https://CHAT.example"),
        ("https://chat.example", "https://chat-example"),
        ("https://chat.example", "https://xchat.example"),
        ("https://chat.example", "https://chat.example\n"),
        ("https://*.example.org", "https://example.org"),
        ("https://*.example.org", "https://.example.org"),
        ("https://*.example.org", "https://a.b.example.org"),
        ("https://*.example.org", "https://a.example.org.evil.example"),
        ("https://*.example.org", "https://evilexample.org"),
        ("https://*.example.org", "https://a.exampleXorg"),
        ("https://*.example.org", "https://evil.example/.example.org"),
        ("https://*.example.org", "https://evil.example:1.example.org"),
        ("https://*.example.org", "https://u@a.example.org"),
        ("https://*.example.org", "http://a.example.org"),
        ("https://*.example.org", "https://a.example.org:8443"),
        ("https://*.example.org", "https://a.example.org\n"),
        ("https://*.example.org", "https://*.example.org"),
        ("https://*.example.org", "https://é.example.org"),
        ("vscode-webview://*", "vscode-webview://"),
        ("vscode-webview://*", "vscode-webview://a.b"),
        ("vscode-webview://*", "vscode-webview://a:1"),
        ("vscode-webview://*", "vscode-webview://a/b"),
        ("vscode-webview://*", "xvscode-webview://a"),
        ("vscode-webview://*", "http://a"),
        ("app://", "app://x"),
        ("app://*", "app://obsidian.md"),
        ("file://", "file:///etc/passwd"),
        ("null", "NULL"),
        ("null", ""),
        ("https://chat.example", "null"),
        ("https://chat.example", ""),
    ],
)
def test_pattern_matches_no_other_origin(pattern, origin):
    assert not origins.is_allowed(origin, [pattern])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*", "every web page"),
        ("", "not an origin"),
        ("chat.example", "not an origin"),
        ("localhost:3000", "not an origin"),
        ("//chat.example", "not an origin"),
        ("*://chat.example", "not an origin"),
        ("http*://chat.example", "not an origin"),
        ("https://", "no host"),
        ("https://*", "unrelated owners"),
        ("https://*.", "unrelated owners"),
        ("https://*.com", "unrelated owners"),
        ("https://*.com.", "unrelated owners"),
        ("https://a.*.example.org", "first label"),
        ("https://*.*.example.org", "first label"),
        ("https://**.example.org", "first label"),
        ("https://a*.example.org", "first label"),
        ("https://*a.example.org", "first label"),
        ("https://chat.example/", "remove the path: `https://chat.example`"),
        ("https://chat.example/page", "remove the path: `https://chat.example`"),
        ("file:///", "remove the path: `file://`"),
        ("https://user@chat.example", "not an origin"),
        ("https://chat.example:", "not an origin"),
        ("https://chat.example:*", "not an origin"),
        ("https://chat.example:0", "port"),
        ("https://chat.example:65536", "port"),
        ("https://chat.example:8\u0663", "not an origin"),
        ("https://chat..example", "not an origin"),
        ("https://chat.example?x", "not an origin"),
        ("https://chat example", "not an origin"),
        (" https://chat.example", "not an origin"),
        ("https://chat.example\n", "not an origin"),
        ("https://\u212aat.example", "not an origin"),
        (".*", "not an origin"),
        ("https://.*", "not an origin"),
        ("https://" + "a" * 300, "not an origin"),
    ],
)
def test_invalid_pattern_is_rejected_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=r"origin|port|host|page") as error:
        origins.parse_pattern(text)
    assert reason in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "normalized"),
    [("HTTPS://Chat.Example:443", "https://chat.example"), ("https://a.example:08080", "https://a.example:8080")],
)
def test_pattern_is_normalized_as_browsers_send_it(text, normalized):
    assert normalized == origins.parse_pattern(text).text
