"""The APIs that clients can speak, one package each.

A protocol is a `RouteGroup` whose handlers parse a request body into an `inference.request.GenerationRequest`, pass it to
`inference.service.Service`, and render the `inference.events` that come back. It maps the neutral locations of errors to
the paths of its own fields. Nothing outside its package knows its field names. `openai` is the model to follow: `chat.py`
reads top to bottom.
"""
