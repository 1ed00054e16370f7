"""Patterns for origins: what each lets in, and which are refused because they would let in too much."""

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
def test_a_pattern_lets_its_origins_in(pattern, origin):
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
def test_a_pattern_lets_nothing_else_in(pattern, origin):
    assert not origins.is_allowed(origin, [pattern])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*", "every web page"),
        ("", "no origin"),
        ("chat.example", "no origin"),
        ("localhost:3000", "no origin"),
        ("//chat.example", "no origin"),
        ("*://chat.example", "no origin"),
        ("http*://chat.example", "no origin"),
        ("https://", "no host"),
        ("https://*", "everybody's"),
        ("https://*.", "everybody's"),
        ("https://*.com", "everybody's"),
        ("https://*.com.", "everybody's"),
        ("https://a.*.example.org", "first label"),
        ("https://*.*.example.org", "first label"),
        ("https://**.example.org", "first label"),
        ("https://a*.example.org", "first label"),
        ("https://*a.example.org", "first label"),
        ("https://chat.example/", "no path: `https://chat.example`"),
        ("https://chat.example/page", "no path: `https://chat.example`"),
        ("file:///", "no path: `file://`"),
        ("https://user@chat.example", "no origin"),
        ("https://chat.example:", "no origin"),
        ("https://chat.example:*", "no origin"),
        ("https://chat.example:0", "port"),
        ("https://chat.example:65536", "port"),
        ("https://chat.example:8\u0663", "no origin"),
        ("https://chat..example", "no origin"),
        ("https://chat.example?x", "no origin"),
        ("https://chat example", "no origin"),
        (" https://chat.example", "no origin"),
        ("https://chat.example\n", "no origin"),
        ("https://\u212aat.example", "no origin"),
        (".*", "no origin"),
        ("https://.*", "no origin"),
        ("https://" + "a" * 300, "no origin"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=r"origin|port|host|page") as refusal:
        origins.parse_pattern(text)
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("HTTPS://Chat.Example:443", "https://chat.example"), ("https://a.example:08080", "https://a.example:8080")],
)
def test_a_pattern_is_spelled_as_browsers_do(text, spelled):
    assert spelled == origins.parse_pattern(text).text
