import { useRef, useState } from "preact/hooks";

import { download, fileName, toJson, toMarkdown } from "../../chat/export";
import { chatModels, modelOf } from "../../chat/models";
import { change, conversations, create, removeConversation } from "../../chat/store";
import type { Conversation } from "../../chat/types";
import { confirmAction } from "../../components/confirm";
import { navigate } from "../../router";

interface ChatHeaderProps {
  conversation: Conversation;
  settings: boolean;
  onSettings: () => void;
  sidebar: boolean;
  onSidebar: () => void;
}

export function ChatHeader({ conversation, settings, onSettings, sidebar, onSidebar }: ChatHeaderProps) {
  const [renaming, setRenaming] = useState(false);
  return (
    <div class="chat-head">
      <button
        type="button"
        class="quiet compact sidebar-toggle"
        aria-expanded={sidebar}
        aria-controls="conversations"
        onClick={onSidebar}
      >
        Chats
      </button>
      {renaming ? (
        <TitleInput conversation={conversation} onDone={() => setRenaming(false)} />
      ) : (
        <h1>{conversation.title}</h1>
      )}
      <div class="row">
        <ModelPicker conversation={conversation} />
        <button type="button" class="quiet compact" aria-expanded={settings} onClick={onSettings}>
          Settings
        </button>
        <Menu conversation={conversation} onRename={() => setRenaming(true)} />
      </div>
    </div>
  );
}

function ModelPicker({ conversation }: { conversation: Conversation }) {
  const models = chatModels();
  const current = modelOf(conversation)?.name ?? conversation.model;
  const missing = current !== "" && !models.some((model) => model.name === current);
  return (
    <select
      aria-label="Model"
      value={current}
      onChange={(event) => change(conversation.id, { model: event.currentTarget.value })}
    >
      {missing && <option value={current}>{current} (not available)</option>}
      {models.length === 0 && !missing && <option value="">No chat model</option>}
      {models.map((model) => (
        <option key={model.name} value={model.name}>
          {model.name}
        </option>
      ))}
    </select>
  );
}

function TitleInput({ conversation, onDone }: { conversation: Conversation; onDone: () => void }) {
  const cancelled = useRef(false);
  return (
    <input
      class="title-input"
      aria-label="Title"
      defaultValue={conversation.title}
      ref={(input) => input?.focus()}
      onKeyDown={(event) => {
        if (event.key === "Escape") cancelled.current = true;
        if (event.key === "Escape" || event.key === "Enter") event.currentTarget.blur();
      }}
      onBlur={(event) => {
        const title = event.currentTarget.value.trim();
        if (title && !cancelled.current) change(conversation.id, { title, named: true });
        onDone();
      }}
    />
  );
}

function Menu({ conversation, onRename }: { conversation: Conversation; onRename: () => void }) {
  const details = useRef<HTMLDetailsElement>(null);
  const close = () => details.current?.removeAttribute("open");
  const item = (label: string, run: () => void, danger = false) => (
    <button
      type="button"
      class={danger ? "quiet danger" : "quiet"}
      onClick={() => {
        close();
        run();
      }}
    >
      {label}
    </button>
  );
  const name = fileName(conversation.title);
  return (
    <details
      class="menu"
      ref={details}
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        close();
        details.current?.querySelector("summary")?.focus();
      }}
      onFocusOut={(event) => {
        if (!details.current?.contains(event.relatedTarget as Node | null)) close();
      }}
    >
      <summary class="button quiet">More</summary>
      <div class="menu-items">
        {item("Rename", onRename)}
        {item("Export as Markdown", () => download(`${name}.md`, "text/markdown", toMarkdown(conversation)))}
        {item("Export as JSON", () => download(`${name}.json`, "application/json", toJson(conversation)))}
        {item("Delete", () => void removeAfterQuestion(conversation), true)}
      </div>
    </details>
  );
}

async function removeAfterQuestion({ id, title }: Conversation): Promise<void> {
  const text = "It is stored in this browser only and cannot be restored.";
  if (!(await confirmAction(`Delete “${title}”?`, text, "Delete"))) return;
  await removeConversation(id);
  navigate("chat", (conversations.value[0] ?? create()).id);
}
