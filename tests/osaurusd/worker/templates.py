"""Chat templates: complete ones from files, and reduced ones that accept and reject the same as other models."""

from pathlib import Path

from osaurusd.imports.worker import templates

_MESSAGE = "<{{ m.role }}>{{ m.content }}\n"
_LOOP = "{% for m in messages %}"
_END = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
_TOOLS = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
_CALLS = (
    "{% for c in m.tool_calls or [] %}"
    "[{{ c.id }}]{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}\n"
)
_ITEMS = (
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({% for k, v in c.function.arguments.items() %}"
    "{{ k }}={{ v if v is string else v | tojson }} {% endfor %}){% endfor %}\n"
)
_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)

# Translates JSON schemas, and follows any type that it does not know forever.
_TYPE_MACRO = (
    "{% macro kind(s) %}{% if s.type == 'string' %}str{% elif s.type == 'array' %}list[{{ kind(s['items']) }}]"
    "{% elif s.type is string %}{{ s.type }}{% else %}{{ kind(s.type) }}{% endif %}{% endmacro %}"
)

REDUCED = {
    "chatml": _LOOP + _MESSAGE + _END,
    "chatml-tools": _TOOLS + _LOOP + _MESSAGE + _CALLS + _END,
    "gemma-2": "{% if messages[0].role == 'system' %}{{ raise_exception('system role not supported') }}{% endif %}"
    + _LOOP
    + _ALTERNATE
    + _MESSAGE
    + _END,
    "gemma-3": "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}"
    + _ALTERNATE
    + "<{{ m.role }}>{{ first if loop.first else '' }}"
    + "{% if m.content is string %}{{ m.content | trim }}{% else %}{{ m.content[0].text }}{% endif %}\n"
    + _END,
    "mistral-7b": _LOOP
    + _ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}" + _END,
    "llama-2": "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    + _ALTERNATE
    + "{% if loop.first %}<<SYS>>{{ system }}<</SYS>>{% endif %}{{ m.content.strip() }}"
    + _END,
    "llama-3": "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% if tools %}{% if not messages %}{{ raise_exception('no first user message') }}{% endif %}<user>"
    + _TOOLS
    + "{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    + _LOOP
    + "{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    '<assistant>{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}"
    "{% elif m.role == 'tool' %}<ipython>{{ m.content | tojson }}{% else %}" + _MESSAGE + "{% endif %}" + _END,
    "command-r": "{% for t in tools %}{{ t.function.name }}: {{ t.function.description }}{% for n, p in "
    "t.function.parameters.properties.items() %}{{ n }}: {{ kind(p) }} {{ p.description }}{% endfor %}{% endfor %}"
    + _LOOP
    + _MESSAGE
    + _CALLS
    + _END,
    "hermes": "{% for t in tools %}{{ t.function.name }} - {{ t.function.description + '\n' }}"
    "{% for n, p in t.function.parameters.properties.items() %}{{ n }}: {{ kind(p) }} {{ p.description }}"
    "{% endfor %}{% endfor %}" + _LOOP + _MESSAGE + _CALLS + _END,
    "phi-4-mini": _LOOP + "<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'system' and 'tools' in m %}{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}" + _CALLS + _END,
    "tools-in-message": _LOOP
    + _MESSAGE
    + "{% for t in m['tools'] or [] %}{{ t.function | tojson }}{% endfor %}"
    + _CALLS
    + _END,
    "xml-tools": "{% for t in xml_tools or [] %}{{ t | string }}\n{% endfor %}" + _LOOP + _MESSAGE + _CALLS + _END,
    "firefunction": "{{ 'Functions: ' + functions + ' today: ' + datetime }}" + _LOOP + _MESSAGE + _CALLS + _END,
    "idefics": _LOOP
    + "<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    + _END,
    "llava": _LOOP + "<{{ m.role }}>{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.content }}"
    "{% endfor %}" + _END,
    "gigachat": _TOOLS
    + _LOOP
    + "{% if m.role != 'assistant' or not loop.last %}"
    + _MESSAGE
    + _CALLS
    + "{% endif %}{% if loop.last %}<assistant>{% endif %}{% endfor %}",
    "parts-of-users": _LOOP + "<{{ m.role }}>{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% else %}{{ m.content + '\n' }}{% endif %}" + _END,
    "qwen-3.5": "{% set ns = namespace(user=false) %}"
    + _LOOP
    + "{% if m.role == 'user' %}{% set ns.user = true %}{% endif %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}"
    "{% endif %}{% endfor %}{% if not ns.user %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
    + _TOOLS
    + _LOOP
    + _MESSAGE
    + _ITEMS
    + _END,
    "nemotron": _TOOLS + "{% if messages[-1].role == 'assistant' %}{% set last = messages[-1].content %}"
    "{% set messages = messages[:-1] %}{% else %}{% set last = '' %}{% endif %}"
    + _LOOP
    + _MESSAGE
    + _CALLS
    + _END
    + "{{ last }}",
    "minimax": _TOOLS
    + "{% set ns = namespace(called=false) %}"
    + _LOOP
    + "{% if m.role == 'assistant' %}{% set ns.called = m.tool_calls | default([]) | length > 0 %}{% endif %}"
    "{% if m.role == 'tool' and not ns.called %}{{ raise_exception('no previous tool call') }}{% endif %}"
    + _MESSAGE
    + _ITEMS
    + _END,
    "deepseek-r1": _TOOLS + _LOOP + "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}"
    "{% endfor %}" + _END,
    "unquoted-arguments": _TOOLS
    + _LOOP
    + _MESSAGE
    + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}"
    "{% endfor %}" + _END,
    "flat-calls": _TOOLS
    + _LOOP
    + _MESSAGE
    + "{% for c in m.tool_calls or [] %}{{ c.name + ':' }}{{ c.arguments | tojson }}{% endfor %}"
    + _END,
    "first-call": _TOOLS + _LOOP + _MESSAGE + "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}{{ c.name }}"
    "{{ c.arguments | tojson }}{% endif %}" + _END,
    "calls-or-text": _TOOLS + _LOOP + "{% if m.tool_calls %}" + _CALLS + "{% else %}" + _MESSAGE + "{% endif %}" + _END,
    "glm": _TOOLS
    + "{% macro visible(c) %}{{ c if c is string else c | map(attribute='text') | join }}{% endmacro %}"
    + _LOOP
    + "<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content.strip() }}</think>{% endif %}"
    "{{ visible(m.content) }}" + _ITEMS + _END,
    "solar": _TOOLS
    + _LOOP
    + "{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}"
    + _MESSAGE
    + _CALLS
    + _END,
    "apriel": _TOOLS
    + _LOOP
    + "{% if 'thought' in m %}<thinking>{{ m.thought }}</thinking>{% endif %}"
    + _MESSAGE
    + _CALLS
    + _END,
    "magistral": _TOOLS
    + _LOOP
    + "<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}[/THINK]{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}" + _CALLS + _END,
    "no-empty-answers": _TOOLS + _LOOP + "{% if m.role == 'assistant' and not m.content and not m.tool_calls %}"
    "{{ raise_exception('Assistant message must have content or tool calls.') }}{% endif %}" + _MESSAGE + _CALLS + _END,
    "results-in-order": _TOOLS + "{% set ns = namespace(ids=[]) %}" + _LOOP + "{% if m.role == 'tool' %}"
    "{% if not ns.ids or m.tool_call_id != ns.ids[0] %}{{ raise_exception('unexpected result') }}{% endif %}"
    "{% set ns.ids = ns.ids[1:] %}{% elif ns.ids %}{{ raise_exception('missing result') }}{% endif %}"
    "{% if m.tool_calls %}{% set ns.ids = m.tool_calls | map(attribute='id') | list %}{% endif %}"
    + _MESSAGE
    + _CALLS
    + _END,
    "results-by-name": _TOOLS
    + _LOOP
    + "{% if m.role == 'tool' %}{{ m.name + ': ' }}{% endif %}"
    + _MESSAGE
    + _CALLS
    + _END,
    "rwkv": "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    + _LOOP
    + "{% if m.role == 'user' %}User: "
    "{{ m.content | trim }}{% elif m.role == 'assistant' %}Assistant: {{ m.content | trim }}{% endif %}" + _END,
}
for _name in ("command-r", "hermes"):
    REDUCED[_name] = _TYPE_MACRO + REDUCED[_name]

# Those that the import adds to files without one.
OWN = {f"own-{path.stem}": path.read_text() for path in sorted(Path(templates.__path__[0]).glob("*.jinja"))}

COMPLETE = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}

NAMED = {
    "named": {"default": REDUCED["chatml"], "tool_use": REDUCED["hermes"]},
    "named-without-default": {"chat": REDUCED["gemma-2"], "rag": REDUCED["chatml"]},
    "named-tool-use-only": {"tool_use": REDUCED["command-r"]},
}

TEMPLATES = {**REDUCED, **COMPLETE, **OWN, **NAMED}
