#!/bin/sh
# The main job, shown: start the daemon, bring in a model, ask it something. `demo.sh MODEL.gguf` or `demo.sh --stop`
set -eu
name=smollm2-135m-instruct
OSAURUS_HOME=${OSAURUS_HOME:-$PWD/.demo}
# A Unix socket's path is short by nature; a checkout that lies deep gets its home elsewhere.
[ ${#OSAURUS_HOME} -le 80 ] || OSAURUS_HOME=$HOME/.osaurus-demo
export OSAURUS_HOME

if [ "$1" = --stop ]; then
    exec osaurusctl down
fi

step() { printf '\n== %s\n' "$*"; }

step "1. Start the daemon"
osaurusctl up || {
    echo "If the port is taken, choose another: OSAURUS_PORT=8081 make demo" >&2
    exit 1
}

step "2. Bring in the starter model"
if osaurusctl ls --json | grep -q "\"name\":\"$name\""; then
    echo "$name is here already"
else
    osaurusctl import "$1" --name "$name"
fi

step "3. Ask it: What is the capital of France?"
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

$(step "Stop it")

  make demo-stop
EOF
