"""`GET /`: a page for browsers, the same facts as JSON for programs that accept it, and for others Ollama's text."""

import html
from string import Template

from aiohttp import hdrs, web

from osaurusd import __version__
from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.models.catalog import Catalog

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>osaurusd</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
code { font: 0.9em ui-monospace, monospace }
</style>
<h1>osaurusd $version is running</h1>
<p>It serves OpenAI's API at <code>$base_url/v1</code>, and Ollama's at <code>$base_url</code>.</p>
<h2>Models</h2>
$models
<h2>More</h2>
<ul>
<li><a href="/v1/models">Models as JSON</a></li>
<li><a href="/openapi.json">Description of the API</a> (OpenAPI)</li>
<li>Chat in a terminal: <code>osaurusctl run</code></li>
<li>Status: <code>osaurusctl status</code></li>
</ul>
""")
_NO_MODELS = "<p>None yet. Download one: <code>osaurusctl pull llama-3.2-3b-instruct</code></p>"

_OLLAMA_TEXT = "Ollama is running"
"""What Ollama answers. Its clients compare the text to find out whether a server is one."""

# The page needs no scripts, images or connections.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def ui_routes(catalog: Catalog) -> RouteGroup:
    """Create the route group. `catalog` lists the models."""

    async def show(request: web.Request) -> web.Response:
        names = [record.name for record in await catalog.available()]
        accept = request.headers.get(hdrs.ACCEPT, "")
        if "text/html" in accept:
            response = _page(request, names)
        elif "json" in accept:
            response = _facts(names)
        else:
            # Clients of Ollama state no preference. Those of other APIs have no use for this path.
            response = web.Response(text=_OLLAMA_TEXT)
        response.headers[hdrs.VARY] = hdrs.ACCEPT
        return response

    return RouteGroup("ui", [Route("GET", "/", show)], error_response)


def _facts(names: list[str]) -> web.Response:
    return json_response({"name": "osaurusd", "version": __version__, "openapi": "/openapi.json", "models": names})


def _page(request: web.Request, names: list[str]) -> web.Response:
    items = "\n".join(f"<li><code>{html.escape(name)}</code></li>" for name in names)
    text = _PAGE.substitute(
        version=__version__,
        base_url=html.escape(f"{request.scheme}://{request.host}"),
        models=f"<ul>\n{items}\n</ul>" if names else _NO_MODELS,
    )
    return web.Response(text=text, content_type="text/html", headers=_SECURITY)
