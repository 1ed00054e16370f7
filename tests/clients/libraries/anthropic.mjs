// Anthropic's client: a conversation with a tool, whole and streamed.
import Anthropic from "@anthropic-ai/sdk";

const { BASE_URL, MODEL: model, QUESTION: content } = process.env;
const client = new Anthropic({ baseURL: BASE_URL, apiKey: "not-needed", maxRetries: 0 });
const input_schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ name: "weather", description: "The weather.", input_schema }];
const cities = [];
const texts = [];

const send = async (messages, streams) => {
  const body = { model, max_tokens: 100, messages, tools };
  return streams ? client.messages.stream(body).finalMessage() : client.messages.create(body);
};

for (const streams of [false, true]) {
  const messages = [{ role: "user", content }];
  const use = await send(messages, streams);
  const results = use.content
    .filter((block) => block.type === "tool_use")
    .map((block) => {
      cities.push(block.input.city);
      return { type: "tool_result", tool_use_id: block.id, content: `sunny in ${block.input.city}` };
    });
  const history = [...messages, { role: "assistant", content: use.content }, { role: "user", content: results }];
  const answer = await send(history, streams);
  texts.push(answer.content.map((block) => block.text).join(""));
}
const { input_tokens } = await client.messages.countTokens({ model, messages: [{ role: "user", content }], tools });
console.log(JSON.stringify({ texts, cities, tokens: input_tokens }));
