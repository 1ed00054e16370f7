"""The APIs that clients can speak, one package each.

A protocol is a `RouteGroup`. Its handlers parse a request body into an `inference.request.GenerationRequest`, pass it
to `inference.service.Service`, and render the `inference.events` that the service yields. Errors carry a location in
the generation request, which the protocol maps to the path of its own field. Nothing outside the package of a protocol
knows its fields. To add one, follow `openai`, starting with `routes.py` and `chat.py`.
"""
