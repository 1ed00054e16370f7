import { expect, test } from "vitest";

import { fileName, toJson, toMarkdown } from "../src/chat/export";
import { requestBody } from "../src/chat/request";
import { MAX_CHARACTERS, MAX_CONVERSATIONS, surplus } from "../src/chat/storage";
import { newConversation, titleOf, type Conversation } from "../src/chat/types";

function conversation(fields: Partial<Conversation>): Conversation {
  return { ...newConversation(), ...fields };
}

test("a request has the system prompt, images, and only the sampling parameters that are set", () => {
  const body = requestBody(
    conversation({
      model: "m",
      system: "Be brief.",
      sampling: { temperature: 0 },
      messages: [
        { role: "user", text: "What is this?", images: ["data:image/png;base64,AA=="] },
        { role: "assistant", text: "A cat", reasoning: "fur" },
        { role: "assistant", text: "", finish: "error", error: "the queue is full" },
      ],
    }),
  );
  expect(body).toEqual({
    model: "m",
    messages: [
      { role: "system", content: "Be brief." },
      {
        role: "user",
        content: [
          { type: "image_url", image_url: { url: "data:image/png;base64,AA==" } },
          { type: "text", text: "What is this?" },
        ],
      },
      { role: "assistant", content: "A cat" },
    ],
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
});

test("the oldest conversations beyond the limits are dropped, but never the newest", () => {
  const many = Array.from({ length: MAX_CONVERSATIONS + 2 }, (_, updated) => conversation({ updated }));
  expect(surplus(many).map(({ updated }) => updated)).toEqual([1, 0]);
  const huge = "x".repeat(MAX_CHARACTERS + 1);
  const large = [conversation({ updated: 1, messages: [{ role: "user", text: huge }] }), conversation({ updated: 0 })];
  expect(surplus(large).map(({ updated }) => updated)).toEqual([0]);
});

test("conversations are exported without the browser's own fields", () => {
  const exported = conversation({
    title: "A/B: test?",
    model: "m",
    messages: [
      { role: "user", text: "hi" },
      { role: "assistant", text: "hello", model: "m" },
    ],
  });
  expect(toMarkdown(exported)).toBe("# A/B: test?\n\n## User\n\nhi\n\n## Assistant (m)\n\nhello\n");
  expect(Object.keys(JSON.parse(toJson(exported)) as object)).toEqual([
    "title",
    "model",
    "system",
    "sampling",
    "messages",
  ]);
  expect([fileName("A/B: test?"), fileName("…")]).toEqual(["A-B-test", "chat"]);
});

test("a title is the beginning of the first message", () => {
  expect(titleOf([{ role: "user", text: "one\n two" }])).toBe("one two");
  expect(titleOf([{ role: "user", text: "x".repeat(100) }]).length).toBe(60);
  expect(titleOf([{ role: "user", text: "", images: ["data:"] }])).toBe("Image");
});
