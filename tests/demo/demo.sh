#!/bin/sh
# Start a daemon, import a model and chat with it. Usage: demo.sh MODEL.gguf, or demo.sh --stop
set -eu
name=smollm2-135m-instruct
OSAURUS_HOME=${OSAURUS_HOME:-$PWD/.demo}
# The path of a Unix socket is limited; use another directory if this one is too deep.
[ ${#OSAURUS_HOME} -le 80 ] || OSAURUS_HOME=$HOME/.osaurus-demo
export OSAURUS_HOME

if [ "$1" = --stop ]; then
    exec osaurusctl down
fi

step() { printf '\n== %s\n' "$*"; }

step "1. Start the daemon"
osaurusctl up || {
    echo "If the port is in use, choose another one: OSAURUS_PORT=8081 make demo" >&2
    exit 1
}

step "2. Import the starter model"
if osaurusctl ls --json | grep -q "\"name\":\"$name\""; then
    echo "$name is already imported"
else
    osaurusctl import "$1" --name "$name"
fi

step "3. Chat: What is the capital of France?"
osaurusctl run "$name" "What is the capital of France?" --temperature 0

port=$(osaurusctl status --json | sed 's/.*"endpoints":\["[^"]*:\([0-9]*\)".*/\1/')
url=http://localhost:$port
cat <<EOF

$(step "Try next")

  curl $url/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{"model": "$name", "messages": [{"role": "user", "content": "Tell me a short story"}], "stream": true}'

  from openai import OpenAI
  client = OpenAI(base_url="$url", api_key="not-needed")
  reply = client.chat.completions.create(model="$name", messages=[{"role": "user", "content": "Hello!"}])
  print(reply.choices[0].message.content)

$(step "Stop the daemon")

  make demo-stop
EOF
