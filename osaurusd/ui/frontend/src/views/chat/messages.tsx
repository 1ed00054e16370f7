import { Component, type ComponentChild } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { regenerate, streaming } from "../../chat/store";
import type { Conversation, Message, Stats } from "../../chat/types";
import { CopyButton } from "../../components/copy_button";
import { integer, latency, speed } from "../../format";
import { Markdown } from "../../markdown";

const NEAR_PIXELS = 80;

export function Messages({ conversation }: { conversation: Conversation }) {
  const { id, messages } = conversation;
  const list = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  useEffect(() => {
    following.current = true;
  }, [id, messages.length]);
  useLayoutEffect(() => {
    if (list.current && following.current) list.current.scrollTop = list.current.scrollHeight;
  }, [messages]);
  const running = streaming.value === id;
  return (
    <div
      class="messages"
      ref={list}
      tabIndex={0}
      role="region"
      aria-label="Messages"
      onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
        following.current = scrollHeight - scrollTop - clientHeight < NEAR_PIXELS;
      }}
    >
      {messages.length === 0 && (
        <div class="welcome">
          <p class="figure">Ask something</p>
          <p class="muted">The model runs on this machine, and the conversation stays in this browser.</p>
        </div>
      )}
      {messages.map((message, index) => {
        const last = index === messages.length - 1;
        return (
          <MessageItem key={index} message={message} id={id} last={last} running={running && last} idle={!running} />
        );
      })}
    </div>
  );
}

interface MessageProps {
  message: Message;
  id: string;
  last: boolean;
  running: boolean;
  idle: boolean;
}

class MessageItem extends Component<MessageProps> {
  // Long conversations: only the message that streams is rendered again.
  override shouldComponentUpdate(next: MessageProps): boolean {
    const { message, last, running, idle } = this.props;
    return message !== next.message || last !== next.last || running !== next.running || idle !== next.idle;
  }

  override render(): ComponentChild {
    const { message, id, last, running, idle } = this.props;
    if (message.role === "user") return <UserMessage message={message} />;
    return (
      <article class="message assistant" aria-label="Answer" aria-busy={running}>
        {message.reasoning && <Reasoning text={message.reasoning} running={running && !message.text} />}
        {message.text ? <Markdown text={message.text} /> : running && <Pending />}
        {message.error && (
          <p class="notice error" role="alert">
            {message.error}
          </p>
        )}
        <footer class="message-foot">
          {/* The foot has its height from the beginning, so that nothing moves when the answer is complete. */}
          {!running && (
            <>
              <CopyButton text={message.text} label="Copy answer" />
              {last && idle && (
                <button type="button" class="quiet compact" onClick={() => regenerate(id)}>
                  Regenerate
                </button>
              )}
              <span class="muted small">{note(message)}</span>
            </>
          )}
        </footer>
      </article>
    );
  }
}

function UserMessage({ message }: { message: Message }) {
  return (
    <article class="message user" aria-label="Your message">
      {message.images?.map((url, index) => (
        <img key={index} src={url} alt={`Attached image ${index + 1}`} />
      ))}
      {message.text && <p class="plain">{message.text}</p>}
    </article>
  );
}

function Reasoning({ text, running }: { text: string; running: boolean }) {
  return (
    <details class="reasoning">
      <summary>{running ? "Thinking …" : "Reasoning"}</summary>
      <p class="plain muted">{text}</p>
    </details>
  );
}

function Pending() {
  return (
    <p class="pending muted">
      <span class="offscreen">Waiting for the answer</span>
      <span aria-hidden="true">…</span>
    </p>
  );
}

function note({ model, finish, stats }: Message): string {
  const ending = {
    length: "reached the maximum length",
    stopped: "stopped",
    error: "failed",
    tool_calls: "called tools",
  }[finish ?? "stopped"];
  return [model, stats && statsText(stats), ending].filter(Boolean).join(" · ");
}

function statsText({ promptTokens, cachedTokens, tokens, firstTokenSeconds, tokensPerSecond }: Stats): string {
  const cached = cachedTokens ? ` (${integer(cachedTokens)} cached)` : "";
  const parts = [
    `${integer(promptTokens)}${cached} → ${integer(tokens)} tokens`,
    `first after ${latency(firstTokenSeconds)}`,
  ];
  return [...parts, ...(tokensPerSecond ? [speed(tokensPerSecond)] : [])].join(" · ");
}
