import { change } from "../../chat/store";
import type { Conversation, Sampling } from "../../chat/types";

const FIELDS = [
  { key: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1 },
  { key: "top_p", label: "Top p", min: 0, max: 1, step: 0.05 },
  { key: "max_tokens", label: "Maximum tokens", min: 1, max: undefined, step: 1 },
] as const;

/** The system prompt and sampling parameters of a conversation. */
export function Settings({ conversation }: { conversation: Conversation }) {
  const { id, system, sampling } = conversation;
  const set = (key: keyof Sampling, text: string) => {
    const rest = Object.fromEntries(Object.entries(sampling).filter(([name]) => name !== key));
    const next = text === "" || Number.isNaN(Number(text)) ? rest : { ...rest, [key]: Number(text) };
    change(id, { sampling: next });
  };
  return (
    <div class="settings stack">
      <label class="field">
        System prompt
        <textarea rows={3} value={system} onInput={(event) => change(id, { system: event.currentTarget.value })} />
      </label>
      <div class="row">
        {FIELDS.map(({ key, label, min, max, step }) => (
          <label key={key} class="field">
            {label}
            <input
              type="number"
              placeholder="default"
              min={min}
              max={max}
              step={step}
              defaultValue={sampling[key] ?? ""}
              onInput={(event) => set(key, event.currentTarget.value)}
            />
          </label>
        ))}
      </div>
    </div>
  );
}
