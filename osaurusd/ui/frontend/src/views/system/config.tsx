import { useEffect, useState } from "preact/hooks";

import { errorText, getJson, postJson } from "../../api";

interface Setting {
  key: string;
  value: unknown;
  source: "default" | "file" | "environment";
  variable: string | null;
  default: unknown;
  unit: string | null;
  range: string | null;
  description: string;
  needs_restart: boolean;
}

interface Config {
  path: string;
  exists: boolean;
  settings: Setting[];
}

const CHECK_DELAY_MS = 300;

export function ConfigView() {
  const [config, setConfig] = useState<Config | null>(null);
  const [words, setWords] = useState("");
  const [status, setStatus] = useState("");
  const read = () => getJson<Config>("/manage/config").then(setConfig, (error: unknown) => setStatus(errorText(error)));
  useEffect(() => void read(), []);
  const saved = (text: string) => {
    setStatus(text);
    void read();
  };
  const shown = config?.settings.filter((setting) => matches(setting, words)) ?? [];
  return (
    <section class="section" aria-label="Configuration">
      <div class="row">
        <input
          class="grow"
          type="search"
          aria-label="Filter settings"
          placeholder="Filter: memory, keep_alive …"
          value={words}
          onInput={(event) => setWords(event.currentTarget.value)}
        />
        {config && <code class="muted">{config.path}</code>}
      </div>
      <p role="status" class={status ? "notice" : "offscreen"}>
        {status}
      </p>
      <ul class="residents">
        {shown.map((setting) => (
          <SettingItem key={setting.key} setting={setting} onSaved={saved} />
        ))}
      </ul>
      {config && shown.length === 0 && <p class="empty">No setting matches.</p>}
    </section>
  );
}

function SettingItem({ setting, onSaved }: { setting: Setting; onSaved: (text: string) => void }) {
  const [editing, setEditing] = useState(false);
  const facts = [
    setting.unit,
    setting.range,
    `default: ${show(setting.default)}`,
    setting.needs_restart && "takes effect after a restart",
  ];
  return (
    <li class="card stack">
      <div class="row">
        <div class="grow">
          <code>
            <strong>{setting.key}</strong>
          </code>
          <p>{setting.description}</p>
          <p class="muted small">{facts.filter(Boolean).join(" · ")}</p>
        </div>
        <code>{show(setting.value)}</code>
        {setting.source !== "default" && <span class="tag">{setting.variable ?? setting.source}</span>}
        <button type="button" class="compact" aria-label={`Change ${setting.key}`} onClick={() => setEditing(!editing)}>
          {editing ? "Close" : "Change"}
        </button>
      </div>
      {editing && (
        <Editor
          setting={setting}
          onSaved={(text) => {
            setEditing(false);
            onSaved(text);
          }}
        />
      )}
    </li>
  );
}

/** Checks what is typed, and stores it. */
function Editor({ setting, onSaved }: { setting: Setting; onSaved: (text: string) => void }) {
  const [text, setText] = useState(setting.value === null ? "" : show(setting.value));
  const [problem, setProblem] = useState("");
  const id = `setting-${setting.key}`;
  useEffect(() => {
    const timer = setTimeout(() => {
      postJson("/manage/config/check", { key: setting.key, value: text }).then(
        () => setProblem(""),
        (error: unknown) => setProblem(errorText(error)),
      );
    }, CHECK_DELAY_MS);
    return () => clearTimeout(timer);
  }, [text, setting.key]);
  const store = async (value: string | null) => {
    try {
      const reply = await postJson<{ needs_restart: string[] }>("/manage/config", { key: setting.key, value });
      const restart = reply.needs_restart.includes(setting.key);
      onSaved(
        `${setting.key} is ${value === null ? "reset" : "stored"}${restart ? "; restart the daemon to apply it" : ""}.`,
      );
    } catch (error) {
      setProblem(errorText(error));
    }
  };
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault();
        void store(text);
      }}
    >
      <input
        id={id}
        class="grow"
        aria-label={`Value of ${setting.key}`}
        aria-invalid={problem !== ""}
        aria-describedby={`${id}-problem`}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <button type="submit" class="primary" disabled={problem !== ""}>
        Save
      </button>
      {setting.source === "file" && (
        <button type="button" onClick={() => void store(null)}>
          Reset to default
        </button>
      )}
      <p id={`${id}-problem`} class="danger-text small grow" role="alert">
        {problem}
      </p>
    </form>
  );
}

function matches({ key, description }: Setting, words: string): boolean {
  const text = `${key} ${description}`.toLowerCase();
  return words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

function show(value: unknown): string {
  return value === null ? "none" : typeof value === "string" ? value : JSON.stringify(value);
}
